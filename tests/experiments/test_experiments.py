"""The experiments' own logic, on stand-ins for models and runs."""

import math

import numpy as np
import pytest
import torch

from cua import CUAConfig, attach
from cua.experiments import hardware, noise_frontier, rate_selection, record, speed, v_proj_selection
from cua.experiments.bench import Bench
from cua.experiments.protocol import change_over_seeds_and_text, change_over_text
from cua.quantum.blocks import Execution

DATA = {"train": {"source": "made up", "sha256": "0" * 64}}


class Stub:
    """A bench on which every adapter has a perplexity that depends on its placement and learning rate."""

    data = DATA

    def __init__(self, model, best_rate: float) -> None:
        self.model, self.best_rate, self.fitted = model, best_rate, []

    def measure(self, name: str, layer: int) -> dict:
        assert name == "selection"
        return {"perplexity": 20.0, "tokens": 10, "nll": [30.0]}

    def fit(self, config, training, folder, name: str, groups=None) -> dict:
        assert (folder, name) == (None, "selection")
        self.fitted.append((config, training))
        distance = abs(math.log(training.learning_rate / self.best_rate))
        layers = config.layers or (0,)
        return self.measure(name, 0) | {"perplexity": 18.0 + distance + 0.1 * abs(layers[0] - 3)}


@pytest.fixture
def stub(llama, monkeypatch, tmp_path):
    """A bench in place of the real one, and records in a folder of their own."""

    def stub(best_rate: float) -> Stub:
        bench = Stub(llama, best_rate)
        monkeypatch.setattr(
            Bench, "prepare", lambda test: bench if not test else pytest.fail("looks at the test split")
        )
        for module in (v_proj_selection, rate_selection):
            monkeypatch.setattr(module, "Record", lambda description: record.Record(description, tmp_path))
        return bench

    return stub


def test_layer_and_rates_with_the_lowest_perplexity_are_selected(stub, monkeypatch):
    bench = stub(best_rate=0.01)
    monkeypatch.setattr(v_proj_selection, "gradient_scores", lambda bench: {"l1": [1.0, 5.0, 3.0, 4.0, 2.0, 0.0]})
    result = v_proj_selection.run()
    chosen = {name: number["value"] for name, number in result["headline"].items()}
    assert chosen == {"layer": 3, "learning_rate": 0.01, "learning_rate_all": 0.01}
    trained = {config.layers for config, _ in bench.fitted}
    assert trained == {(1,), (2,), (3,), (4,), (15,), None}, "the four best scores, the reference and all"
    runs = len(bench.fitted)
    assert v_proj_selection.run() == result
    assert len(bench.fitted) == runs, "nothing is trained again"


@pytest.mark.parametrize("best", rate_selection.BLOCK_SIZE.rates)
def test_the_rate_with_the_lowest_perplexity_is_selected_for_each_size(stub, best):
    bench = stub(best)
    headline = rate_selection.BLOCK_SIZE.run()["headline"]
    assert {number["value"] for name, number in headline.items() if name.endswith("_rate")} == {best}
    assert len(headline) == 2 * len(rate_selection.BLOCK_SIZE.studies)
    change = headline["v_proj_16x16_selection_change"]["value"]
    assert change == pytest.approx(100 * ((18.0 + 0.1 * 17) / 20 - 1))
    assert {training.steps for _, training in bench.fitted} == {120}


def test_cases_of_the_frontier_are_all_different_and_can_be_run():
    cases = list(noise_frontier.cases())
    assert len({case.key for case in cases}) == len(cases)
    for case in cases:
        four = case.blocks.startswith(("4x4", "butterfly"))
        assert four == (noise_frontier.QUBITS.get(case.blocks, 2) == 2)
        assert case.circuit == "textbook" or four
        Execution(case.circuit, case.readout, case.shots)
        assert case.blocks in noise_frontier.TRAINED
        assert case.device in noise_frontier.DEVICES
        assert ("constrained" in case.blocks) == (case.readout == "sign-constrained"), "read as trained"
    labels = [case.label for case in cases]
    assert {labels.count(case.label) for case in cases if case.shots == 8192} == {3}
    assert {labels.count(case.label) for case in cases if case.shots != 8192} == {1}


def test_headline_of_the_frontier_by_hand():
    """Runs of 2 windows with 5 and 7 predictions, all different."""
    rng = np.random.default_rng(0)
    keys = {"base"} | {key for case in noise_frontier.cases() for key in (case.key, case.exact)}
    runs = {key: {"tokens": 12, "nll": rng.uniform(10, 11, 2).tolist()} for key in sorted(keys)}
    for key in runs:
        runs[key]["perplexity"] = math.exp(sum(runs[key]["nll"]) / 12)

    def changes(key: str, reference: str) -> list[float]:
        return [
            100 * (runs[f"{key}/{s}"]["perplexity"] / runs[reference.format(s)]["perplexity"] - 1) for s in range(3)
        ]

    headline = noise_frontier.headline(runs)
    key, label = (
        "4x4/superdense/sign-faithful/fake_marrakesh/8192/none",
        "4x4_superdense_sign_faithful_fake_marrakesh_8192_none",
    )
    for name, values in ("penalty", changes(key, "4x4/exact/{}")), ("change", changes(key, "base")):
        number = headline[f"{name}_{label}"]
        half = 4.30265 * np.std(values, ddof=1) / math.sqrt(3)
        assert [number[end] for end in ("low", "value", "high")] == pytest.approx(
            [np.mean(values) - half, np.mean(values), np.mean(values) + half], rel=1e-4
        )
    first = headline[f"penalty_seed0_{label}"]
    assert first["value"] == pytest.approx(changes(key, "4x4/exact/{}")[0])
    assert first["low"] < first["value"] < first["high"]
    assert headline[f"penalty_over_text_{label}"]["value"] == pytest.approx(
        np.mean(changes(key, "4x4/exact/{}")), abs=1
    )
    assert headline["penalty_4x4_superdense_sign_faithful_fake_marrakesh_1024_none"]["low"] is None, "one seed"


def test_a_change_over_text_by_hand():
    """Two seeds, two windows of 10 predictions; windows differ, so the interval has a width."""
    runs = {
        "exact0": {"tokens": 20, "nll": [30.0, 40.0]},
        "exact1": {"tokens": 20, "nll": [29.0, 41.0]},
        "noisy0": {"tokens": 20, "nll": [30.2, 40.4]},
        "noisy1": {"tokens": 20, "nll": [29.2, 41.4]},
    }
    change = change_over_text([(runs["noisy0"], runs["exact0"]), (runs["noisy1"], runs["exact1"])])
    half = 12.7062 * 0.1  # Student's t for two values, times their standard error
    for name, log in (("value", 0.3), ("low", 0.3 - half), ("high", 0.3 + half)):
        assert change[name] == pytest.approx(100 * math.expm1(log / 10), rel=1e-4), name
    assert change["unit"] == "%"


def test_neighbouring_windows_count_as_one():
    """Ninety windows whose changes come in threes: as if there were thirty."""
    changes = np.repeat(np.random.default_rng(0).normal(size=30), 3)

    def pair(changes: np.ndarray) -> tuple[dict, dict]:
        return {"tokens": 10 * len(changes), "nll": list(10 * changes)}, {"nll": [0.0] * len(changes)}

    grouped, alone = change_over_text([pair(changes)]), change_over_text([pair(changes[::3])])
    assert grouped == pytest.approx(alone)
    half = 2.045230 * changes[::3].std(ddof=1) / math.sqrt(30)
    assert grouped["high"] == pytest.approx(100 * math.expm1(changes.mean() + half), rel=1e-4)


def test_a_change_for_other_seeds_and_other_text_by_hand():
    """Two texts of two windows of 10 predictions, two seeds; in nats a token half of what is summed over each text."""

    def pairs(*seeds: tuple[float, float]) -> list[tuple[dict, dict]]:
        return [({"tokens": 20, "nll": list(nll)}, {"nll": [0.0, 0.0]}) for nll in seeds]

    first, second = pairs((1.0, 3.0), (2.0, 4.0)), pairs((0.0, 0.0), (2.0, 2.0))
    found = change_over_seeds_and_text([first, second])
    seeds, t = np.array([(0.2 + 0.0) / 2, (0.3 + 0.2) / 2]), 12.7062
    over_text = np.array([np.std([0.15, 0.35], ddof=1), 0.0]) / math.sqrt(2) / 2
    half = t * math.sqrt((seeds.std(ddof=1) / math.sqrt(2)) ** 2 + (over_text**2).sum())
    for name, shift in (("low", -half), ("value", 0), ("high", half)):
        assert found[name] == pytest.approx(100 * math.expm1(seeds.mean() + shift), rel=1e-4)
    single = change_over_seeds_and_text([first[:1]])
    assert single == pytest.approx(change_over_text(first[:1]))


def test_headline_of_the_hardware_study_by_hand():
    """Each number of a run says which seed, deal and packing it is of."""
    runs = {}
    for seed in range(3):
        for resets in (1, 2):
            for i, errors in enumerate(hardware.ERRORS):
                later = 0.01 * (resets + i) + 0.001 * seed
                runs[f"strength/{resets}/{errors}/{seed}"] = {"by_round": [0.03 + 0.001 * seed, later, later + 0.002]}
        for i, name in enumerate(hardware.PACKINGS):
            for deal, factor in (("random", 3.0), ("importance", 1.0)):
                noisy = {"perplexity": 20 * (1 + 0.01 * factor), "output_error": 0.001 * (i + 1) * factor}
                runs[f"perplexity/{name}/{deal}/{seed}"] = {"exact": {"perplexity": 20.0}} | dict.fromkeys(
                    ("none", "readout", "readout+depolarising"), noisy
                )
        runs[f"text/{seed}"] = {
            "first_difference": [None, 3 + 2 * seed],
            "probabilities": [None, [0.3, 0.3 - 0.01 * seed]],
        }
    headline = hardware.headline(runs)
    values = {name: number["value"] for name, number in headline.items()}
    assert values["strength_first_1_resets_measurement"] == pytest.approx(3.1)
    assert values["strength_later_2_resets_reset"] == pytest.approx(3.2)
    half = 4.30265 * 0.1 / math.sqrt(3)
    assert headline["strength_later_2_resets_reset"]["low"] == pytest.approx(3.2 - half, rel=1e-4)
    assert values["penalty_3_rounds_random_none"] == pytest.approx(3.0)
    assert values["output_error_3_rounds_importance_readout_depolarising"] == pytest.approx(0.2)
    assert values["deal_gain_1_round_readout"] == pytest.approx(3.0)
    assert (values["texts"], values["same_text"], values["median_first_difference"]) == (6, 3, 6)
    assert (values["median_gap"], values["largest_gap"]) == pytest.approx((0.01, 0.02))


def test_the_hardware_study_names_the_adapter_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "ADAPTERS", tmp_path)
    monkeypatch.setattr(Bench, "prepare", lambda test: pytest.fail("work before the check"))
    with pytest.raises(FileNotFoundError, match=r"train it with: python -m cua\.experiments v_proj_bounded"):
        hardware.run()


def test_the_frontier_names_the_adapters_that_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(noise_frontier, "ADAPTERS", tmp_path)
    monkeypatch.setattr(Bench, "prepare", lambda test: pytest.fail("work before the check"))
    with pytest.raises(FileNotFoundError, match=r"train it with: python -m cua\.experiments v_proj_16x16 v_proj_2x2 "):
        noise_frontier.run()


@pytest.mark.parametrize("n", [2, 9, 10, 30])
def test_few_ratios_have_no_interval(n):
    seconds = {"a": np.linspace(2.0, 4.0, n).tolist(), "b": [2.0] * n}
    ratio = speed.ratio(seconds, "a", "b", "x")
    assert ratio["value"] == pytest.approx(1.5)
    assert (ratio["low"] is None) == (ratio["high"] is None) == (n < 10)
    if n >= 10:
        assert 1.0 < ratio["low"] < 1.5 < ratio["high"] < 2.0


def test_what_a_pass_keeps_is_less_than_its_peak_and_not_more_than_without_values(make_llama):
    model, ids = make_llama().requires_grad_(False), torch.zeros(1, 64, dtype=torch.int64)
    assert speed.saved_bytes(lambda: model.model(ids), model) == 0, "frozen"
    attach(model, CUAConfig(("v_proj",), (1,)))
    kept = speed.saved_bytes(lambda: model.model(ids), model)
    assert 0.4 * speed.peak_bytes(lambda: model.model(ids)) < kept
    assert kept < speed.peak_bytes(lambda: model.model(ids))
    with torch.device("meta"):
        empty = type(model)(model.config).requires_grad_(False)
    attach(empty, CUAConfig(("v_proj",), (1,)))
    without = speed.saved_bytes(lambda: empty.model(ids.to("meta")), empty)
    assert kept <= without < 3 * kept, "there, attention is computed the plain way, which keeps more"
