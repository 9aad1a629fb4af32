"""Recorded results against what the committed adapters and the data give today: a slice of each, recomputed."""

import json
import os
from contextlib import ExitStack, nullcontext

import pytest
import torch
from qiskit_ibm_runtime.fake_provider import FakeMarrakesh
from torch import nn

import cua
from cua import CUAConfig
from cua.experiments import (
    baseline_methods,
    baseline_selection,
    baselines,
    benchmarks,
    block_readout,
    both_sides,
    budget_circuits,
    clothes,
    compression,
    compression_rates,
    domains,
    few_shots,
    forgetting,
    gains,
    hardware,
    layer_cost,
    noise_frontier,
    placement,
    shift_training,
    two_questions,
)
from cua.experiments.bench import TEST_WINDOW, wikitext_splits
from cua.experiments.budgets import BUDGETS, TARGETS
from cua.experiments.noise_frontier import Case
from cua.experiments.protocol import WikitextStudy, percent_change
from cua.experiments.rate_selection import SELECTIONS
from cua.experiments.record import ADAPTERS, RESULTS
from cua.experiments.trained import attached
from cua.experiments.v_proj import ALL_LAYERS, BLOCK_DIMENSIONS, BLOCK_SIZES, BOUNDED, ONE_LAYER
from cua.hybrid import run_on_circuits
from cua.llm.data import load_corpus, windows
from cua.llm.evaluate import perplexity
from cua.llm.models import identity
from cua.quantum.blocks import Execution
from cua.quantum.layout import disjoint_paths
from cua.quantum.noise import DeviceNoise
from cua.quantum.packing import PackedCircuit

# A window's summed loss (about 3,500 nats) is stored to 1e-4; other CPUs and thread counts round differently.
NATS = 0.05
# Copied signs are a jump: a component that another CPU rounds to the other side of zero comes out with another sign,
# and through thirty layers others follow.  So these losses are compared on the scale of what the adapter gains.
COPIED = 0.02
ALL_STUDIES = (ONE_LAYER, ALL_LAYERS, *BLOCK_SIZES, *BLOCK_DIMENSIONS, *BUDGETS)
STUDIES = [study for study in ALL_STUDIES if (RESULTS / f"{study.name}.json").exists()]
CHOOSING = [*(selection.name for selection in SELECTIONS), "v_proj_selection", "placement", "ideas", "distillation"]
CHOOSING += [compression_rates.NAME, baseline_selection.NAME]

needs_copy = pytest.mark.skipif(
    not os.environ.get("CUA_HUB_COPY"), reason="WikiText-2 is not at hand; name a hub copy in CUA_HUB_COPY"
)


def assert_same(headline: dict, derived: dict) -> None:
    """Equal but for the order of additions."""
    for name, number in derived.items():
        derived[name] = {
            k: pytest.approx(v, rel=1e-9, abs=1e-12) if isinstance(v, float) else v for k, v in number.items()
        }
    assert headline == derived


def recorded(name: str) -> dict:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{name} is not recorded yet")
    return json.loads(path.read_text())


def recorded_run(result: dict, key: str) -> dict:
    if key not in result["runs"]:
        assert result["status"] == "partial"
        pytest.skip(f"{key} is not recorded yet")
    return result["runs"][key]


@pytest.fixture(scope="module")
def test_windows(embedded):
    corpus = load_corpus("wikitext-2", "test")
    return corpus, windows(embedded[1], corpus.text, TEST_WINDOW)


@needs_copy
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_window_of_every_readout_gives_the_recorded_loss(study: WikitextStudy, embedded, test_windows):
    model, _ = embedded
    result, (corpus, ids) = recorded(study.name), test_windows
    assert result["model"] == identity(model)
    assert result["data"]["test"].items() >= corpus.provenance().items()
    assert result["data"]["test"]["windows"] == len(ids)
    base = perplexity(model, ids[3:4]).nll[0]
    assert base == pytest.approx(result["runs"]["base"]["nll"][3], abs=NATS)
    for readout in study.readouts:
        key = f"{readout}-seed0"
        if key not in result["runs"]:
            assert result["status"] == "partial"
            continue
        adapter = cua.load(model, ADAPTERS / study.name / key)
        assert adapter.config.readout == readout
        adapted = perplexity(model, ids[3:4]).nll[0]
        adapter.detach()
        then = result["runs"][key]["nll"][3]
        close = NATS if readout == "exact" else max(NATS, COPIED * abs(then - base))
        assert adapted == pytest.approx(then, abs=close)
        assert abs(adapted - base) > 10 * NATS


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_the_headline_follows_from_the_runs(study: WikitextStudy):
    result = recorded(study.name)
    runs = result["runs"]
    for key, run in runs.items():
        mean = sum(run["nll"]) / run["tokens"]
        assert run["perplexity"] == pytest.approx(torch.tensor(mean).exp().item(), rel=1e-5), key
        assert run["tokens"] == len(run["nll"]) * (TEST_WINDOW - 1)
    if result["status"] == "complete":
        assert_same(result["headline"], study.headline(runs))
        for readout in study.readouts:
            changes = [percent_change(runs[f"{readout}-seed{seed}"], runs["base"]) for seed in study.seeds]
            value = result["headline"][f"{readout.replace('-', '_')}_change"]["value"]
            assert value == pytest.approx(sum(changes) / len(changes))


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_the_recorded_configuration_is_the_study_as_it_is_now(study: WikitextStudy):
    assert recorded(study.name)["config"] == json.loads(json.dumps(study.configuration))


@needs_copy
@pytest.mark.parametrize("name", CHOOSING)
def test_selection_looked_at_validation_only_and_its_base_loss_holds(name, embedded):
    model, tokenizer = embedded
    result = recorded(name)
    assert "test" not in result["data"]
    selection = wikitext_splits()["selection"]
    assert result["data"]["selection"]["sha256"] == selection.provenance()["sha256"]
    ids = windows(tokenizer, selection.text, TEST_WINDOW)[:1]
    base = result["runs"]["original" if name in ("distillation", compression_rates.NAME) else "base"]
    assert perplexity(model, ids).nll[0] == pytest.approx(base["nll"][0], abs=NATS)


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda selection: selection.name)
def test_the_recorded_rates_were_tried_on_the_placements_as_they_are_now(selection):
    assert recorded(selection.name)["config"] == json.loads(json.dumps(selection.configuration))


def test_the_study_uses_what_the_selection_chose():
    chosen = recorded("v_proj_selection")["headline"]
    if not chosen:
        pytest.skip("the selection is not complete")
    assert ONE_LAYER.adapter.layers == (chosen["layer"]["value"],)
    assert ONE_LAYER.training.learning_rate == chosen["learning_rate"]["value"]
    assert ALL_LAYERS.training.learning_rate == chosen["learning_rate_all"]["value"]


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda selection: selection.name)
def test_studies_use_the_rates_that_were_chosen(selection):
    chosen = recorded(selection.name)["headline"]
    if not chosen:
        pytest.skip("the selection is not complete")
    final = {study.name: study for study in ALL_STUDIES if study is not BOUNDED}
    for name in selection.studies.keys() & final.keys():
        assert final[name].training.learning_rate == chosen[f"{name}_rate"]["value"], name
    assert BOUNDED.training.learning_rate == ONE_LAYER.training.learning_rate


@pytest.mark.parametrize(("study", "n_blocks"), list(zip(BUDGETS, placement.BLOCKS, strict=True)))
def test_the_budgets_are_spent_where_validation_text_says(study, n_blocks):
    result = recorded("placement")
    if result["status"] != "complete":
        pytest.skip("placement is not complete")
    everywhere = {key: run for key, run in result["runs"].items() if key.endswith(f"/{n_blocks}/all")}
    best = min(everywhere, key=lambda key: everywhere[key]["perplexity"])
    assert best == f"{'+'.join(TARGETS)}/input/{n_blocks}/all"


def test_adapters_on_compressed_models_use_the_rates_that_were_chosen():
    result = recorded(compression_rates.NAME)
    chosen = result["headline"]
    if not chosen:
        pytest.skip("the rates are not complete")
    assert_same(chosen, compression_rates.headline(result["runs"]))
    rates = {f"{m}_{kind}_rate": rate for m, kinds in compression.RATES.items() for kind, rate in kinds.items()}
    assert {name: number["value"] for name, number in chosen.items()} == rates


def test_the_headline_of_the_compression_follows_from_its_runs():
    result = recorded("compression")
    if result["status"] == "complete":
        assert_same(result["headline"], compression.headline(result["runs"]))


def test_the_headline_of_the_readings_follows_from_the_runs():
    result = recorded("block_readout")
    if result["status"] == "complete":
        assert_same(result["headline"], block_readout.headline(result["runs"]))


def test_the_headline_of_the_budgets_on_circuits_follows_from_the_runs():
    result = recorded("budget_circuits")
    if result["status"] == "complete":
        studies = {study.name: recorded(study.name)["runs"] for study in BUDGETS}
        exact = {name: runs[f"exact-seed{budget_circuits.SEED}"] for name, runs in studies.items()}
        assert_same(result["headline"], budget_circuits.headline(result["runs"], exact, studies["budget_1k"]["base"]))


@pytest.mark.parametrize("study", [baseline_selection, domains, gains, forgetting], ids=lambda study: study.NAME)
def test_the_headline_of_what_adapters_do_elsewhere_follows_from_the_runs(study):
    result = recorded(study.NAME)
    if result["status"] == "complete":
        assert_same(result["headline"], study.headline(result["runs"]))


def test_a_window_of_news_gains_what_is_recorded(embedded):
    model, tokenizer = embedded
    result = recorded("gains")
    ids = domains.cut(tokenizer, domains.corpus("news", "test"), domains.WINDOWS)[4:5]
    of_kind = gains.kinds(tokenizer, ids)
    adapters = {"news/base": nullcontext(), "news/seed1": attached(model, ADAPTERS / "domains" / "news" / "seed1")}
    for key, adapter in adapters.items():
        if key not in result["runs"]:
            assert result["status"] == "partial"
            continue
        with adapter:
            nll = gains.losses(model, ids)
        found, run = gains.summed(nll, nll, of_kind), result["runs"][key]
        assert found["nll"][0] == pytest.approx(run["nll"][4], abs=NATS)
        assert found["by_eighth"][2]["nll"][0] == pytest.approx(run["by_eighth"][2]["nll"][4], abs=NATS)


@pytest.mark.parametrize("study", clothes.STUDIES, ids=lambda study: study.name)
def test_the_headline_of_the_price_of_clothes_follows_from_the_runs(study):
    result = recorded(study.name)
    if result["status"] == "complete":
        assert_same(result["headline"], clothes.headline(result["runs"], result["config"]["words"]))


def test_the_headline_of_the_two_questions_follows_from_the_answers():
    result = recorded("two_questions")
    answers = {label: row["answer"] for label, row in result["config"]["asked"].items()}
    assert_same(result["headline"], two_questions.headline(result["runs"], answers))


@pytest.mark.parametrize("study", benchmarks.STUDIES, ids=lambda study: study.name)
def test_the_headline_of_a_benchmark_follows_from_the_answers(study):
    result = recorded(study.name)
    if result["status"] == "complete":
        every = study.every
        base = None if study.name == benchmarks.BASE else benchmarks.same_questions(recorded(benchmarks.BASE), every)
        assert_same(result["headline"], benchmarks.headline(result["runs"], base, every))
        assert result["config"]["left_out"] == [name for name in every if name not in result["runs"]]


def test_the_headline_of_the_baselines_follows_from_their_runs_and_ours():
    result = recorded("baselines")
    if result["status"] == "complete":
        sizes = zip(baseline_selection.BUDGETS, BUDGETS, strict=True)
        ours = {label: recorded(study.name)["runs"] for label, study in sizes}
        assert_same(result["headline"], baselines.headline(result["runs"], ours))


@needs_copy
@pytest.mark.parametrize("method", baseline_methods.METHODS)
def test_a_window_of_every_baseline_gives_the_recorded_loss(method, embedded, test_windows):
    result, (model, _) = recorded("baselines"), embedded
    key = f"{method}/6k/seed0"
    run = recorded_run(result, key)
    with attached(model, ADAPTERS / "baselines" / key) as adapter:
        if method == "scales":  # of which those that were not trained are one
            moved = sum(int((parameter != 1).sum()) for parameter in adapter.parameters())
            assert 0.9 < moved / run["parameters"] <= 1
        else:
            assert adapter.n_parameters == run["parameters"]
        found = perplexity(model, test_windows[1][:: baselines.EVERY][2:3]).nll[0]
    assert found == pytest.approx(run["nll"][2], abs=NATS)


def test_the_headline_of_both_sides_follows_from_the_runs():
    result, others = recorded("both_sides"), recorded("baselines")["runs"]
    if result["status"] == "complete":
        ours = {size: recorded(f"budget_{size}")["runs"] for size in both_sides.SIZES}
        rates = recorded("budget_rates")["runs"]
        assert_same(result["headline"], both_sides.headline(result["runs"], rates, others, ours))
        assert all(0 < run["largest_k_norm"] < 2 for run in result["runs"].values())


@needs_copy
@pytest.mark.parametrize("size", both_sides.SIZES)
def test_a_window_of_both_sides_gives_the_recorded_loss(size, embedded, test_windows):
    result, (model, _) = recorded("both_sides"), embedded
    key = f"{size}/seed0"
    run = recorded_run(result, key)
    with ExitStack() as sides:
        folders = sorted((ADAPTERS / "both_sides" / key).iterdir())
        adapters = [sides.enter_context(attached(model, folder)) for folder in folders]
        assert sum(adapter.n_parameters for adapter in adapters) == run["parameters"]
        found = perplexity(model, test_windows[1][:: both_sides.EVERY][2:3]).nll[0]
    assert found == pytest.approx(run["nll"][2], abs=NATS)


@pytest.mark.parametrize("study", [study for study in STUDIES if study.training.max_k_norm], ids=lambda s: s.name)
def test_bounded_blocks_kept_the_bound(study):
    runs = recorded(study.name)["runs"]
    norms = [run["largest_k_norm"] for key, run in runs.items() if key != "base"]
    assert norms
    assert all(0 < norm <= study.training.max_k_norm + 1e-4 for norm in norms)


@needs_copy
def test_a_noisy_window_of_the_frontier_gives_the_recorded_loss(embedded, test_windows):
    """The case without shot noise: which shots are drawn depends on all windows before."""
    result, (model, _) = recorded("noise_frontier"), embedded
    case = Case("4x4", "superdense", "sign-faithful", "fake_marrakesh", None, "none", seed=0)
    backend = FakeMarrakesh()
    chains = disjoint_paths(backend, 2, cutoff=noise_frontier.CUTOFF)
    places = noise_frontier.deal(chains, case.seed)
    execution = Execution(case.circuit, case.readout, case.shots, DeviceNoise(backend), places)
    ids = test_windows[1][result["config"]["windows"][1]][None]
    adapter = cua.load(model, ADAPTERS / result["config"]["adapters"][case.blocks][0])
    with run_on_circuits(adapter, execution):
        noisy = perplexity(model, ids).nll[0]
    adapter.detach()
    assert noisy == pytest.approx(result["runs"][case.key]["nll"][1], abs=NATS)


@needs_copy
def test_a_window_read_from_four_shots_loses_about_what_is_recorded(embedded):
    """Four shots of every block: which ones depends on the last bit of every angle, how much they cost hardly."""
    result, (model, tokenizer) = recorded("few_shots"), embedded
    first = windows(tokenizer, wikitext_splits()["selection"].text, TEST_WINDOW)[result["config"]["windows"][0]][None]
    assert perplexity(model, first).nll[0] == pytest.approx(result["runs"]["base"]["nll"][0], abs=NATS)
    adapter = cua.load(model, ADAPTERS / BOUNDED.name / "exact-seed0")
    exact = perplexity(model, first).nll[0]
    with run_on_circuits(adapter, Execution(shots=4)):
        read = perplexity(model, first).nll[0]
    adapter.detach()
    was_exact, was_read = (torch.tensor(result["runs"][key]["nll"]) for key in ("exact/0", "perfect/4/0"))
    assert exact == pytest.approx(was_exact[0].item(), abs=NATS)
    lost = was_read - was_exact
    assert abs(read - exact - lost.mean()) < 3 * lost.std() < lost.mean()


@pytest.mark.parametrize("study", [few_shots, layer_cost, shift_training], ids=lambda study: study.NAME)
def test_the_headline_of_what_reading_and_training_cost_follows_from_the_runs(study):
    result = recorded(study.NAME)
    assert_same(result["headline"], study.headline(result["runs"]))


def test_the_headline_of_the_frontier_follows_from_its_runs():
    result = recorded("noise_frontier")
    if result["status"] == "complete":
        assert_same(result["headline"], noise_frontier.headline(result["runs"]))


def test_the_strength_of_the_noise_by_round_is_the_recorded_one(embedded):
    """Three rounds of the recorded seventeen; shots may be others, as they depend on the last bit of every angle."""
    result, (model, _) = recorded("hardware"), embedded
    device = FakeMarrakesh()
    pairs = [tuple(pair) for pair in result["config"]["pairs"]]
    assert pairs == disjoint_paths(device, 2, limit=hardware.PAIRS, cutoff=hardware.CUTOFF)
    packed, noise = PackedCircuit(device, pairs, 3, resets=2), DeviceNoise(device, asymmetric_readout=True)
    adapter = cua.load(model, ADAPTERS / f"{BOUNDED.name}/exact-seed1")
    by_round = hardware.strengths(adapter, packed, noise, "reset_idle", seed=1)
    adapter.detach()
    assert by_round == pytest.approx(result["runs"]["strength/2/reset_idle/1"]["by_round"][:3], abs=0.002)
    assert by_round[1] > by_round[0] + 0.01, "resets err"


def test_the_headline_of_the_hardware_study_follows_from_its_runs():
    result = recorded("hardware")
    assert_same(result["headline"], hardware.headline(result["runs"]))


def test_prefix_speed_timed_the_loss_that_the_model_has(embedded):
    model, tokenizer = embedded
    result, corpus = recorded("prefix_speed"), load_corpus("wikipedia", "train")
    assert result["data"]["train"]["sha256"] == corpus.provenance()["sha256"]
    ids = windows(tokenizer, corpus.text, 512)[:1]
    loss = perplexity(model, ids).nll[0] / 511
    for key, run in result["runs"].items():
        assert run["loss"]["plain"] == pytest.approx(run["loss"]["frozen_prefix"], abs=1e-5), key
    assert result["runs"]["layer15_512_tokens"]["loss"]["plain"] == pytest.approx(loss, abs=1e-4)


def test_adapter_speed_compared_layers_that_compute_the_same():
    result = recorded("adapter_speed")
    assert result["runs"]["timings"]["largest_output_difference"] < 1e-5
    layer = nn.ModuleDict({"v_proj": nn.Linear(*result["config"]["layer"], bias=False)})
    block_size = result["config"]["block_size"]
    assert cua.attach(layer, CUAConfig(block_size=block_size)).n_parameters == 6144
