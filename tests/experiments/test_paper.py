"""The paper's profile end to end: its own code on a random Llama, scaled down, and on other text."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import cua
from cua import CUAConfig
from cua.experiments import paper
from cua.experiments.record import Record
from cua.experiments.schema import check
from cua.llm.architectures import meta_model
from cua.llm.data import load_corpus
from cua.llm.evaluate import perplexity
from cua.llm.models import load_model

LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no", "--num_processes", "2", "--main_process_port", "0"]
LENGTHS = tuple((split, 32) for split in ("train", "selection", "test"))
LIMITS = (("train", 12), ("selection", 4), ("test", 6))
SMALL = replace(
    paper.PAPER_8B,
    name="small",
    layers=(1, 2),
    rates=(0.05, 0.1),
    steps=6,
    seeds=(0, 1),
    lengths=LENGTHS,
    limits=LIMITS,
    dtype="float32",
)
CHOOSING = ["base-selection", "layer1-rate0.1", "layer2-rate0.1"]


def use_news() -> None:
    """Packaged text in place of WikiText-2."""
    news = {split: load_corpus("news", split) for split in ("train", "validation", "test")}
    paper.wikitext_splits = lambda: {"train": news["train"], "selection": news["validation"]}
    paper.load_corpus = lambda *_: news["test"]


@pytest.fixture
def folder(make_llama, make_tokenizer, tmp_path) -> Path:
    """Llama 3.1's architecture in small on disk: grouped queries, untied head, scaled rotary embedding, BOS."""
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    make_llama(rope_parameters=rope).save_pretrained(tmp_path / "model")
    make_tokenizer(True).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Records in a folder of their own, and other text."""
    for name in ("wikitext_splits", "load_corpus"):
        monkeypatch.setattr(paper, name, getattr(paper, name))  # put back at the end
    use_news()
    monkeypatch.setattr(paper, "ADAPTERS", tmp_path / "adapters")
    monkeypatch.setattr(paper, "Record", lambda description: Record(description, tmp_path))
    return tmp_path


def test_the_profile_chooses_trains_measures_and_records(folder, here, capsys):
    profile = replace(SMALL, model=str(folder))
    result = profile.run()
    check(result)
    said = capsys.readouterr().out
    assert f"{folder} on {'a CPU' if not torch.cuda.is_available() else 'cuda'}" in said
    assert "trained on news, train (embedded)" in said
    runs, headline = result["runs"], {name: number["value"] for name, number in result["headline"].items()}
    assert result["status"] == "complete"
    assert list(runs)[:3] == CHOOSING
    seen = list(runs)
    assert seen.index("base-test") > max(i for i, key in enumerate(seen) if key.startswith("layer")), "test comes last"
    layer = min(profile.layers, key=lambda layer: runs[f"layer{layer}-rate0.1"]["perplexity"])
    rate = min(profile.rates, key=lambda rate: runs[f"layer{layer}-rate{rate}"]["perplexity"])
    assert (headline["layer"], headline["learning_rate"], headline["parameters"]) == (layer, rate, 8 * 6)
    assert result["data"]["test"]["windows"] == 6
    assert result["data"]["test"]["bos"]
    assert headline["exact_change"] < 0
    model, tokenizer = load_model(str(folder))
    adapter = cua.load(model, here / "adapters" / "small" / "exact-seed1")
    assert list(adapter.modules) == [f"model.layers.{layer}.self_attn.v_proj"]
    tokens = cua.llm.data.windows(tokenizer, load_corpus("news", "test").text, 32)
    tokens = tokens[torch.linspace(0, len(tokens) - 1, 6).long()]
    assert perplexity(model, tokens).value == pytest.approx(runs["exact-seed1"]["perplexity"], rel=1e-5)


def test_what_a_run_computes_is_as_counted(folder, here, monkeypatch):
    """Tokens times decoder layers, forward and backward, counted where they happen."""
    forward, backward = [], []
    call = LlamaDecoderLayer.forward

    def counted(self, hidden_states, *rest, **options):
        output = call(self, hidden_states, *rest, **options)
        forward.append(hidden_states[..., 0].numel())
        if output.requires_grad:
            output.register_hook(lambda grad: backward.append(grad[..., 0].numel()))
        return output

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counted)
    profile = replace(SMALL, model=str(folder))
    layer = int(profile.run()["headline"]["layer"]["value"])
    windows = dict(LIMITS)
    assert (sum(forward), sum(backward)) == profile.layer_tokens(4, windows, layer)
    assert profile.layer_tokens(4, windows)[1] >= sum(backward)


def test_an_interrupted_profile_resumes(folder, here, monkeypatch):
    profile, add = replace(SMALL, model=str(folder)), Record.add
    added: list[str] = []

    def interrupted(self, key, run, wall_s):
        if key == "exact-seed1":
            raise KeyboardInterrupt
        add(self, key, run, wall_s)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            profile.run()
    monkeypatch.setattr(Record, "add", lambda self, key, *rest: added.append(key) or add(self, key, *rest))
    assert profile.run()["status"] == "complete"
    assert added == ["exact-seed1", "sign-constrained-seed0", "sign-constrained-seed1"]


def test_two_processes_of_one_launch_share_every_run(folder, tmp_path):
    root = Path(cua.__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUA_RECORDS": str(tmp_path)}
    script = tmp_path / "small.py"
    script.write_text(
        "from dataclasses import replace\nfrom tests.experiments.test_paper import SMALL, use_news\n"
        f"use_news()\nreplace(SMALL, model={str(folder)!r}).run()\n"
    )
    command = [sys.executable, *LAUNCH, str(script)]
    environment |= {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "results" / "small.json").read_text())
    check(result)
    assert (result["status"], result["config"]["processes"]) == ("complete", 2)
    assert list(result["runs"])[:3] == CHOOSING
    assert len(result["runs"]["exact-seed0"]["nll"]) == 6, "each window once"
    assert done.stdout.count("on validation text") == 1


def test_a_process_on_its_own_is_told_of_another(folder, here, monkeypatch):
    monkeypatch.setattr(Record, "missing", lambda self, keys: iter(()))
    with pytest.raises(RuntimeError, match=r"another process is at base-selection; .* several by accelerate launch"):
        replace(SMALL, model=str(folder)).run()


def test_the_profile_at_full_size_has_the_right_shapes():
    """On the meta device: the adapter, the loss, and a gradient for each of the 6,144 parameters."""
    model = meta_model(paper.PAPER_8B.model)
    layer = paper.PAPER_8B.layers[0]
    adapter = cua.attach(model, CUAConfig(("v_proj",), (layer,)))
    ids = torch.zeros(1, 512, dtype=torch.int64, device="meta")
    output = model(ids, labels=ids)
    assert output.logits.shape == (1, 512, 128256)
    output.loss.backward()
    (theta,) = adapter.parameters()
    assert theta.grad.shape == (1024, 6)
    assert layer < model.config.num_hidden_layers
    assert max(paper.PAPER_8B.layers) < model.config.num_hidden_layers
