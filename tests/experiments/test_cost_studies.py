"""Cost of a layer, and training with measured gradients: their own logic, in small."""

from dataclasses import replace

import pytest
import torch

from cua import CUAConfig, attach, save
from cua.experiments import few_shots, layer_cost, shift_training
from cua.experiments.bench import Bench
from cua.experiments.record import Record
from cua.experiments.schema import check
from cua.llm.data import load_corpus


@pytest.fixture
def small_layer(monkeypatch, tmp_path):
    small = layer_cost.LAYER | {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    monkeypatch.setattr(layer_cost, "LAYER", small | {"num_key_value_heads": 2})
    monkeypatch.setattr(layer_cost, "TOKENS", {"cpu": (1, 8), "cuda": (1,)})
    monkeypatch.setattr(layer_cost, "REPEATS", 10)
    monkeypatch.setattr(layer_cost, "Record", lambda description: Record(description, tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_layer_is_timed_bare_with_blocks_and_with_lora(small_layer):
    result = layer_cost.run()
    check(result)
    assert result["status"] == "complete"
    assert list(result["runs"]) == ["cpu/1", "cpu/8"]
    timed = result["runs"]["cpu/8"]
    assert {kind: sorted(timed[kind]) for kind in ("forward_s", "alone_s", "step_s")} == {
        "forward_s": ["bare", "blocks", "lora"],
        "alone_s": ["blocks", "lora"],
        "step_s": ["bare", "blocks", "lora"],
    }
    assert all(len(seconds) == 10 and min(seconds) > 0 for seconds in timed["forward_s"].values())
    number = result["headline"]["cpu_8_alone_blocks"]
    assert number["unit"] == "us/token"
    assert number["value"] == pytest.approx(sum(timed["alone_s"]["blocks"]) / 10 * 1e6 / 8)
    assert result["headline"]["cpu_8_blocks_over_bare"]["low"] <= result["headline"]["cpu_8_blocks_over_bare"]["high"]


def test_the_layer_is_that_of_the_papers_model():
    layer = layer_cost.layer("meta")
    shapes = {name: tuple(p.shape) for name, p in layer.model.layers[0].named_parameters()}
    assert shapes["self_attn.v_proj.weight"] == (1024, 4096)
    assert shapes["mlp.down_proj.weight"] == (4096, 14336)
    assert sum(p.numel() for p in layer.model.layers[0].parameters()) == 218_112_000


@pytest.fixture
def small_bench(make_llama, make_tokenizer, monkeypatch):
    model = make_llama(hidden_size=32).requires_grad_(False)
    corpora = {"train": load_corpus("news", "train"), "selection": load_corpus("news", "validation")}
    bench = Bench.of(model, make_tokenizer(False), corpora, dict.fromkeys(corpora, 16), dict.fromkeys(corpora, 8))
    monkeypatch.setattr(Bench, "prepare", lambda test: bench if not test else pytest.fail("looks at the test split"))
    for study in (few_shots, shift_training):
        monkeypatch.setattr(study, "identity", lambda model: {"name": "m", "parameters": 1, "dtype": "float32"})
    return bench


def test_fewer_shots_cost_more_and_noise_more_than_none(small_bench, move, monkeypatch, tmp_path):
    study = replace(few_shots.BOUNDED, name="small", adapter=CUAConfig(("v_proj",), (1,)))
    monkeypatch.setattr(few_shots, "BOUNDED", study)
    monkeypatch.setattr(few_shots, "ADAPTERS", tmp_path)
    monkeypatch.setattr(few_shots, "WINDOWS", 6)
    monkeypatch.setattr(few_shots, "SHOTS", (4, 100_000_000))
    monkeypatch.setattr(few_shots, "Record", lambda description: Record(description, tmp_path))
    for seed in few_shots.SEEDS:
        adapter = move(attach(small_bench.model, study.adapter), 0.2)
        save(adapter, tmp_path / "small" / f"exact-seed{seed}")
        adapter.detach()
    result = few_shots.run()
    check(result)
    assert len(result["runs"]) == 1 + 3 * (1 + 2 * 2)
    few, many = (abs(result["headline"][f"penalty_perfect_{shots}"]["value"]) for shots in few_shots.SHOTS)
    noisy = abs(result["headline"]["penalty_fake_marrakesh_100000000"]["value"])
    assert many < 0.01 < few
    assert many < noisy < few
    assert result["runs"]["exact/0"]["nll"] != result["runs"]["base"]["nll"]
    assert not any(hasattr(module, "theta") for module in small_bench.model.modules()), "the adapter is off again"


def test_training_with_measured_gradients_comes_near_the_exact_ones(small_bench, monkeypatch, tmp_path):
    monkeypatch.setattr(shift_training, "Record", lambda description: Record(description, tmp_path))
    study = replace(shift_training.BOUNDED, adapter=CUAConfig(("v_proj",), (1,)))
    monkeypatch.setattr(shift_training, "BOUNDED", study)
    monkeypatch.setattr(shift_training, "TRAINING", replace(study.training, steps=8, learning_rate=0.1, warmup=1))
    monkeypatch.setattr(shift_training, "SHOTS", (16, 100_000))
    result = shift_training.run()
    check(result)
    assert len(result["runs"]) == 1 + 3 * 3
    headline = result["headline"]
    assert headline["change_exact"]["value"] < 0
    assert abs(headline["against_exact_100000"]["value"]) < abs(headline["change_exact"]["value"]) / 10
    assert abs(headline["against_exact_100000"]["value"]) < abs(headline["against_exact_16"]["value"])
    losses = {key: run["train_loss"] for key, run in result["runs"].items() if key != "base"}
    assert losses["16/seed0"] != losses["exact/seed0"], "gradients are measured"
    assert not any(hasattr(module, "theta") for module in small_bench.model.modules()), "the adapter is off again"
