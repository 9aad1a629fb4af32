import copy
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import cua
from cua import CUAConfig, attach
from cua.checkpoint import base_identity

V_PROJ = [f"model.layers.{i}.self_attn.v_proj" for i in range(4)]
ELSEWHERE = """
import sys, torch, cua
from transformers import LlamaForCausalLM
model_folder, adapter_folder, ids_file, answer_file = sys.argv[1:]
model = LlamaForCausalLM.from_pretrained(model_folder).eval()
adapter = cua.load(model, adapter_folder)
with torch.no_grad():
    logits = model(torch.load(ids_file)).logits
torch.save((dict(zip(adapter.modules, map(torch.Tensor.detach, adapter.parameters()))), logits), answer_file)
"""


@pytest.fixture
def saved(llama, move, tmp_path) -> Path:
    """A saved adapter; the model it came from is plain again."""
    adapter = move(attach(llama, CUAConfig(layers=(1, 2))))
    folder = cua.save(adapter, tmp_path / "adapter")
    adapter.detach()
    return folder


def rewrite(folder: Path, tensors: dict | None = None, **fields) -> None:
    """Change a saved adapter and make its SHA-256 right again."""
    description = json.loads((folder / "adapter.json").read_text()) | fields
    if tensors is not None:
        save_file(tensors, folder / "adapter.safetensors")
        blob = (folder / "adapter.safetensors").read_bytes()
        description["safetensors_sha256"] = hashlib.sha256(blob).hexdigest()
    (folder / "adapter.json").write_text(json.dumps(description))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter.safetensors")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": ("q_proj", "lm_head"), "block_size": 8},
        {"target_modules": r".*\.[13]\..*o_proj", "side": "output", "readout": "sign-constrained"},
        {"layers": (1, 3), "block_size": 2},
        {"strides": (1, 4)},
        {"strides": (1, 4), "gain": True},
        {"strides": (4, 1, 2), "block_size": 2, "side": "output", "readout": "sign-constrained"},
    ],
    ids=str,
)
def test_loads_what_was_saved_bit_for_bit(llama, ids, move, options, tmp_path):
    adapter = move(attach(llama, CUAConfig(**options)))
    moved = llama(ids).logits
    cua.save(adapter, tmp_path / "new" / "folder")
    adapter.detach()
    loaded = cua.load(llama, tmp_path / "new" / "folder")
    assert loaded.config == CUAConfig(**options)
    assert list(loaded.modules) == list(adapter.modules)
    assert all(map(torch.equal, loaded.parameters(), adapter.parameters()))
    assert torch.equal(llama(ids).logits, moved)
    assert {p for p in llama.parameters() if p.requires_grad} == set(loaded.parameters())


def test_a_new_process_computes_the_same(llama, ids, move, tmp_path):
    llama.save_pretrained(tmp_path / "model")
    adapter = move(attach(llama, CUAConfig()))
    cua.save(adapter, tmp_path / "adapter")
    torch.save(ids, tmp_path / "ids.pt")
    paths = [tmp_path / name for name in ("model", "adapter", "ids.pt", "answer.pt")]
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *paths],
        cwd=Path(cua.__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    thetas, logits = torch.load(tmp_path / "answer.pt")
    assert list(thetas) == list(adapter.modules)
    assert all(map(torch.equal, thetas.values(), adapter.parameters()))
    assert torch.equal(logits, llama(ids).logits)


def truncate(folder):
    file = folder / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def empty(folder):
    (folder / "adapter.safetensors").write_bytes(b"")


def flip_a_bit(folder):
    file = folder / "adapter.safetensors"
    blob = bytearray(file.read_bytes())
    blob[-1] ^= 1
    file.write_bytes(blob)


def swap(folder):
    save_file({name: theta + 1 for name, theta in tensors(folder).items()}, folder / "adapter.safetensors")


def poison(folder, value=torch.nan):
    changed = tensors(folder)
    changed[V_PROJ[2]][0, 0] = value
    rewrite(folder, changed)


def edit_config(**options):
    def edit(folder):
        config = json.loads((folder / "adapter.json").read_text())["config"]
        rewrite(folder, config=config | options)

    return edit


def drop(field):
    def edit(folder):
        description = json.loads((folder / "adapter.json").read_text())
        del description[field]
        (folder / "adapter.json").write_text(json.dumps(description))

    return edit


DAMAGE = {
    "truncated": (truncate, "truncated or damaged"),
    "empty": (empty, "truncated or damaged"),
    "one bit": (flip_a_bit, "not the file that adapter.json describes"),
    "swapped": (swap, "not the file that adapter.json describes"),
    "NaN": (poison, rf"{V_PROJ[2]} hold NaN or infinity"),
    "infinity": (lambda folder: poison(folder, -torch.inf), "NaN or infinity"),
    "block size": (edit_config(block_size=8), r"\(8, 6\); this model needs \(4, 28\)"),
    "strides": (edit_config(strides=[1, 4]), r"\(8, 6\); this model needs \(16, 6\)"),
    "stride beyond the width": (edit_config(strides=[16]), r"block_size \* 16 = 64 does not divide"),
    "no strides": (edit_config(strides=[]), "strides="),
    "fewer modules": (lambda folder: rewrite(folder, {V_PROJ[1]: torch.zeros(8, 6)}), f"{V_PROJ[2]} has shape None"),
    "other layers": (edit_config(layers=[1, 3]), f"{V_PROJ[2]} has shape .* needs None"),
    "shapes": (lambda folder: rewrite(folder, {n: t[:7] for n, t in tensors(folder).items()}), r"\(7, 6\); this model"),
    "dtype": (lambda folder: rewrite(folder, {n: t.half() for n, t in tensors(folder).items()}), "float16"),
    "not in this model": (edit_config(target_modules=["c_attn"]), "no linear layer matches"),
    "unknown field": (edit_config(angle=3), "angle"),
    "unknown readout": (edit_config(readout="signed"), r"adapter\.json: unknown readout"),
    "future version": (lambda folder: rewrite(folder, format_version=2), "format version 2"),
    "no version": (drop("format_version"), "not an adapter description"),
    "no config": (drop("config"), "incomplete"),
    "no base model": (drop("base_model"), "incomplete"),
    "no checksum": (drop("safetensors_sha256"), "incomplete"),
    "half a JSON file": (
        lambda folder: (folder / "adapter.json").write_text('{"format_version": 1, '),
        "not an adapter",
    ),
    "another JSON file": (lambda folder: (folder / "adapter.json").write_text("[1]"), "not an adapter description"),
    "not text": (lambda folder: (folder / "adapter.json").write_bytes(b"\xff\xfe\x00"), "not an adapter description"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_refuses_a_damaged_checkpoint_and_leaves_the_model_alone(llama, saved, snapshot, damage, message):
    llama.requires_grad_(True)
    damage(saved)
    before = snapshot(llama)
    with pytest.raises(ValueError, match=message):
        cua.load(llama, saved)
    assert snapshot(llama) == before


def test_a_checkpoint_of_peft_is_called_one(llama, saved):
    (saved / "adapter.json").rename(saved / "adapter_config.json")
    with pytest.raises(FileNotFoundError, match=r"a checkpoint of PEFT, which cua\.interop\.from_peft reads$"):
        cua.load(llama, saved)


@pytest.mark.parametrize("off", ["merge", "detach"])
def test_an_adapter_that_was_taken_off_is_not_saved(llama, move, off, tmp_path):
    adapter = move(cua.attach(llama, cua.CUAConfig(layers=(2,))))
    getattr(adapter, off)()
    with pytest.raises(ValueError, match="does not carry this adapter any more"):
        cua.save(adapter, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
def test_refuses_a_missing_file(llama, saved, snapshot, name):
    (saved / name).unlink()
    before = snapshot(llama)
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        cua.load(llama, saved)
    assert snapshot(llama) == before


def test_refuses_another_base_model(make_llama, saved, snapshot):
    other = make_llama(seed=1)
    before = snapshot(other)
    with pytest.raises(ValueError, match=r"the weights of this model, .*, differ"):
        cua.load(other, saved)
    assert snapshot(other) == before


def test_refuses_a_model_that_lacks_the_layers_and_names_the_folder(make_llama, saved, snapshot):
    smaller = make_llama(num_hidden_layers=1)
    before = snapshot(smaller)
    with pytest.raises(ValueError, match=re.escape(f"{saved} does not fit this model: ")):
        cua.load(smaller, saved)
    assert snapshot(smaller) == before


def test_refuses_a_model_that_has_the_adapter(llama, saved, snapshot):
    cua.load(llama, saved)
    before = snapshot(llama)
    with pytest.raises(ValueError, match="already has an adapter"):
        cua.load(llama, saved)
    assert snapshot(llama) == before


def test_no_path_of_the_machine_is_saved(llama, move, tmp_path):
    llama.name_or_path = str(tmp_path / "private" / "llama-97")
    folder = cua.save(move(attach(llama, CUAConfig())), tmp_path / "adapter")
    text = (folder / "adapter.json").read_text()
    assert json.loads(text)["base_model"]["name"] == "llama-97"
    assert str(tmp_path) not in text
    assert "private" not in text


def test_a_hub_id_is_saved(llama, tmp_path):
    llama.name_or_path = "someone/llama-97"
    folder = cua.save(attach(llama, CUAConfig()), tmp_path)
    assert json.loads((folder / "adapter.json").read_text())["base_model"]["name"] == "someone/llama-97"


def test_overwriting_leaves_one_loadable_adapter(llama, saved, move):
    adapter = move(attach(llama, CUAConfig(block_size=8)), seed=5)
    cua.save(adapter, saved)
    adapter.detach()
    assert sorted(path.name for path in saved.iterdir()) == ["adapter.json", "adapter.safetensors"]
    loaded = cua.load(llama, saved)
    assert loaded.config.block_size == 8
    assert all(map(torch.equal, loaded.parameters(), adapter.parameters()))


def test_description(llama, saved):
    description = json.loads((saved / "adapter.json").read_text())
    blob = (saved / "adapter.safetensors").read_bytes()
    assert description["safetensors_sha256"] == hashlib.sha256(blob).hexdigest()
    assert description["n_parameters"] == 2 * 8 * 6
    assert description["base_model"] == base_identity(llama, V_PROJ[1:3])
    assert {name: tuple(theta.shape) for name, theta in tensors(saved).items()} == dict.fromkeys(V_PROJ[1:3], (8, 6))


def test_a_checkpoint_from_before_strides_has_stride_one(llama, saved):
    config = json.loads((saved / "adapter.json").read_text())["config"]
    del config["strides"]
    rewrite(saved, config=config)
    assert cua.load(llama, saved).config == CUAConfig(layers=(1, 2))


@pytest.fixture
def saved_groups(llama, move, tmp_path) -> Path:
    groups = {V_PROJ[1]: torch.tensor([[3, 0, 8, 9], [1, 15, 2, 4]]), V_PROJ[3]: torch.tensor([[30, 1, 2, 5]])}
    adapter = move(attach(llama, CUAConfig(), groups))
    folder = cua.save(adapter, tmp_path / "groups")
    adapter.detach()
    return folder


def test_groups_load_bit_for_bit(llama, ids, saved_groups):
    base = llama(ids).logits
    loaded = cua.load(llama, saved_groups)
    assert [module.groups.tolist() for module in loaded.modules.values()] == [
        [[3, 0, 8, 9], [1, 15, 2, 4]],
        [[30, 1, 2, 5]],
    ]
    assert loaded.n_parameters == 18
    moved = llama(ids).logits
    assert not torch.allclose(moved, base, atol=0.1)
    cua.save(loaded, saved_groups)
    loaded.detach()
    cua.load(llama, saved_groups)
    assert torch.equal(llama(ids).logits, moved)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({f"{V_PROJ[1]}.groups": torch.tensor([[3, 0, 8, 9], [1, 15, 2, 3]])}, "expected distinct components"),
        ({f"{V_PROJ[1]}.groups": torch.tensor([[3, 0, 8, 9]])}, r"has shape \(2, 6\); this model needs \(1, 6\)"),
        ({f"{V_PROJ[2]}.groups": torch.tensor([[3, 0, 8, 9]])}, r"has shape None; this model needs \(1, 6\)"),
        ({"lm_head.groups": torch.tensor([[3, 0, 8, 9]])}, "groups name lm_head"),
        ({f"{V_PROJ[1]}.groups": None}, r"has shape \(2, 6\); this model needs None"),
    ],
    ids=str,
)
def test_groups_that_do_not_fit_are_refused(llama, snapshot, saved_groups, changed, message):
    stored = tensors(saved_groups) | changed
    rewrite(saved_groups, {name: tensor for name, tensor in stored.items() if tensor is not None})
    before = snapshot(llama)
    with pytest.raises(ValueError, match=message):
        cua.load(llama, saved_groups)
    assert snapshot(llama) == before


def test_one_identity_in_float32_and_bfloat16(llama, saved):
    narrow = copy.deepcopy(llama).to(torch.bfloat16)
    assert base_identity(narrow, V_PROJ) == base_identity(llama, V_PROJ)
    assert len(cua.load(narrow, saved).modules) == 2


def test_the_adapter_itself_does_not_enter_the_identity(llama, move):
    plain = base_identity(llama, V_PROJ)
    move(attach(llama, CUAConfig()))
    assert base_identity(llama, V_PROJ) == plain


def test_merged_weights_have_another_identity(llama, move):
    plain = base_identity(llama, V_PROJ)
    move(attach(llama, CUAConfig(layers=(3,)))).merge()
    assert base_identity(llama, V_PROJ)["weights_sha256"] != plain["weights_sha256"]
