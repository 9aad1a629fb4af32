import itertools
import math

import pytest
import torch

from cua.experiments import compression, distillation
from cua.experiments.bench import Bench
from cua.experiments.distillation import LESSONS, Lesson
from cua.llm.compression import Compression
from cua.llm.train import teacher_states


@pytest.mark.parametrize("fails", [False, True])
def test_the_original_comes_back_after_compression(frozen, ids, fails):
    windows = torch.randint(97, (20, 16), generator=torch.Generator().manual_seed(3))
    bench = Bench(frozen, {"train": windows}, {})
    before, logits = {name: p.clone() for name, p in frozen.named_parameters()}, frozen(ids).logits
    with compression.compressed(bench, None) as share:
        assert share == 1
        assert torch.equal(frozen(ids).logits, logits)
    try:
        with compression.compressed(bench, Compression("svd", layers=(1, 2), kept=0.3)) as share:
            assert share < 0.9
            assert not torch.allclose(frozen(ids).logits, logits, atol=0.01)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert all(torch.equal(p, before[name]) for name, p in frozen.named_parameters())


def test_headline_of_the_compression_by_hand():
    """Original 20; compressed 25; with the adapter 22; the original with an adapter 19.  LoRA: 24.5 and 19.5."""
    runs = {}
    for i, (model, keys) in enumerate(compression.work().items()):
        level = 20.0 if model == "original" else 24.0 + i
        for key, (kind, seed) in keys.items():
            gain = {"": 0.0, "cua": 1.0 if model == "original" else 3.0, "lora": 0.5}[kind]
            runs[key] = made_up(level - gain - 0.01 * seed * (kind != ""), share_of_bits=0.9)
            runs[key]["elsewhere"] = {"perplexity": 2 * runs[key]["perplexity"], "kl": 0.1 * i + 0.01 * seed}
    numbers = compression.headline(runs)
    first, cost = next(iter(compression.COMPRESSIONS)), 5.0
    assert first == compression.CLAIMED
    assert numbers[f"{first}_cost"]["value"] == pytest.approx(100 * cost / 20)
    assert numbers[f"{first}_cua_recovered"]["value"] == pytest.approx(100 * 3.02 / cost)
    for kind, adapted, control in (("cua", 22.0, 19.0), ("lora", 24.5, 19.5)):
        nets = [1 - math.log((adapted - 0.01 * s) / (control - 0.01 * s)) / math.log(25 / 20) for s in range(5)]
        assert numbers[f"{first}_{kind}_net"]["value"] == pytest.approx(100 * sum(nets) / 5)
        assert numbers[f"{first}_{kind}_net_over_text"]["value"] == pytest.approx(100 * sum(nets) / 5, rel=1e-4)
    assert numbers["original_cua_change"]["value"] == pytest.approx(-100 * 1.02 / 20)
    assert numbers[f"{first}_cua_change_elsewhere"]["value"] == pytest.approx(100 * (21.98 / 20 - 1))
    assert numbers[f"{first}_cua_kl_elsewhere"]["value"] == pytest.approx(0.12)
    assert "quantised_mild_lora_recovered" not in numbers
    assert "original_cua_recovered" not in numbers


def made_up(perplexity: float, spread: float = 0.0, **more) -> dict:
    """A run of eight windows of ten tokens; every second window's loss is ``spread`` nats a token above the first's."""
    losses = [10 * (math.log(perplexity) + spread * (i % 2 - 0.5)) for i in range(8)]
    return {"perplexity": perplexity, "nll": losses, "tokens": 80} | more


def test_what_differs_from_window_to_window_widens_the_interval_over_text():
    original, adapted, control = made_up(20.0), [made_up(22.0)], [made_up(19.0)]
    same = compression.bootstrap(original, made_up(25.0), adapted, control)
    assert same.shape == (compression.BOOTSTRAP, 2)
    assert same.std(0) == pytest.approx(0, abs=1e-9)
    spread = compression.bootstrap(original, made_up(25.0, spread=0.2), adapted, control)
    assert (spread.std(0) > 1).all()
    # by hand: with n of 8 windows from the upper half the gap is ln(25/20) + 0.2 (n/8 - 1/2)
    nets = {100 * (1 - math.log(22 / 19) / (math.log(1.25) + 0.2 * (n / 8 - 0.5))) for n in range(9)}
    assert {round(net, 6) for net in spread[:, 1]} <= {round(net, 6) for net in nets}


def test_a_comparison_measures_the_distance_from_the_original(frozen):
    windows = torch.randint(97, (3, 16), generator=torch.Generator().manual_seed(3))
    tokens = {"test": windows, "elsewhere": windows + 0}
    states = teacher_states(frozen, windows, dtype=torch.float32)
    bench = compression.Comparison(frozen, tokens, {}, original=states)
    same = bench.measure("test", 0)
    assert same["elsewhere"]["kl"] == pytest.approx(0, abs=1e-6)
    assert same["elsewhere"]["nll"] == pytest.approx(same["nll"], rel=1e-5)
    with torch.no_grad():
        frozen.model.layers[1].mlp.up_proj.weight += 0.3
    assert bench.measure("test", 0)["elsewhere"]["kl"] > 1e-3


def test_headline_of_the_lessons_by_hand():
    runs = {"cache": {"kl_bf16": 1e-5}, "original": {"perplexity": 30.0}, "compressed": {"perplexity": 40.0}}
    for i, (lesson, seed) in enumerate(itertools.product(LESSONS, range(3))):
        runs[f"{lesson.key}/seed{seed}"] = {"perplexity": runs[lesson.student]["perplexity"] - 1 - 0.1 * i}
    numbers = distillation.headline(runs)
    assert numbers["kl_bf16"]["value"] == 1e-5
    assert numbers["original_none_change"]["value"] == pytest.approx(-100 * 1.1 / 30)
    expected = sum(100 * ((28.7 - 0.1 * s) / (29.0 - 0.1 * s) - 1) for s in range(3)) / 3
    assert numbers["original_itself_05_10_against_none"]["value"] == pytest.approx(expected)
    assert "compressed_none_against_none" not in numbers
    assert len(numbers) == 1 + len(LESSONS) + sum(lesson.teacher != "none" for lesson in LESSONS)


def test_every_lesson_has_a_key_of_its_own():
    assert len({lesson.key for lesson in LESSONS}) == len(LESSONS)
    assert Lesson("original", "none").key == "original/none"
    assert {lesson.student for lesson in LESSONS} == {"original", "compressed"}
