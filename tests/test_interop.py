import json

import pytest
import torch
from peft import LoraConfig, OFTConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from cua import CUAConfig, attach, interop
from cua.interop import from_peft, to_peft


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def peft_checkpoint(model, folder, kind=OFTConfig, **options):
    """Save a PEFT adapter with random weights; return the PEFT model."""
    if kind is OFTConfig:
        options = {"r": 0, "oft_block_size": 4, "use_cayley_neumann": False} | options
    peft_model = get_peft_model(model, kind(target_modules=["v_proj"], **options))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "oft_R" in name or "lora" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape))
    peft_model.save_pretrained(folder)
    return peft_model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_size": 8, "layers": (1, 3)},
        {"target_modules": ("q_proj", "down_proj", "lm_head"), "block_size": 2},
        {"target_modules": r".*\.2\..*_proj", "block_size": 16},
    ],
    ids=str,
)
def test_peft_computes_the_same_and_gives_the_same_back(llama, ids, move, options, tmp_path):
    base = logits(llama, ids)
    adapter = move(attach(llama, CUAConfig(**options)))
    moved = logits(llama, ids)
    to_peft(adapter, tmp_path)
    adapter.detach()
    peft_model = PeftModel.from_pretrained(llama, tmp_path)
    torch.testing.assert_close(logits(peft_model, ids), moved, rtol=0, atol=1e-5)
    assert not torch.allclose(moved, base, atol=0.1)
    back = from_peft(peft_model.unload(), tmp_path)
    assert list(back.modules) == list(adapter.modules)
    assert all(map(torch.equal, back.parameters(), adapter.parameters()))
    assert torch.equal(logits(llama, ids), moved)


def test_double_precision_survives(llama, move, tmp_path):
    adapter = move(attach(llama.double(), CUAConfig()))
    before = [theta.detach().clone() for theta in adapter.parameters()]
    to_peft(adapter, tmp_path)
    adapter.detach()
    after = from_peft(llama, tmp_path).parameters()
    assert all(a.dtype == torch.float64 and torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_peft_computes_the_same_on_the_embedded_model(embedded, sentence, move, tmp_path):
    model, _ = embedded
    adapter = move(attach(model, CUAConfig(layers=(5, 15))))
    try:
        moved = logits(model, sentence)
        to_peft(adapter, tmp_path)
    finally:
        adapter.detach()
    base = logits(model, sentence)
    peft_model = PeftModel.from_pretrained(model, tmp_path)
    try:
        through_peft = logits(peft_model, sentence)
    finally:
        peft_model.unload()
    assert not torch.allclose(moved, base, atol=0.1)
    torch.testing.assert_close(through_peft, moved, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("b", [2, 4, 8])
def test_an_oft_adapter_of_peft_loads(llama, ids, b, tmp_path):
    peft_model = peft_checkpoint(llama, tmp_path, oft_block_size=b)
    expected = logits(peft_model, ids)
    model = peft_model.unload()
    base = logits(model, ids)
    adapter = from_peft(model, tmp_path)
    assert adapter.config.block_size == b
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(expected, base, atol=0.1)


def test_parameters_relate_by_minus_two_and_not_by_two(llama, ids, tmp_path):
    peft_model = peft_checkpoint(llama, tmp_path)
    expected = logits(peft_model, ids)
    stored = list(load_file(tmp_path / "adapter_model.safetensors").values())
    adapter = from_peft(peft_model.unload(), tmp_path)
    for mine, theirs in zip(adapter.parameters(), stored, strict=True):
        assert torch.equal(mine, -2 * theirs)
    with torch.no_grad():
        for theta in adapter.parameters():
            theta.neg_()
    assert (logits(llama, ids) - expected).abs().max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_cayley_neumann": True}, "use_cayley_neumann=True"),
        ({"coft": True}, "coft=True"),
        ({"block_share": True}, "block_share=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"kind": LoraConfig}, "LORA checkpoint, not OFT"),
    ],
    ids=str,
)
def test_refuses_what_is_not_an_exact_rotation(llama, make_llama, snapshot, options, message, tmp_path):
    peft_checkpoint(llama, tmp_path, **options)
    model = make_llama()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        from_peft(model, tmp_path)
    assert snapshot(model) == before


def test_refuses_the_default_of_peft(llama, make_llama, tmp_path):
    get_peft_model(llama, OFTConfig(target_modules=["v_proj"], oft_block_size=4)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use_cayley_neumann=True"):
        from_peft(make_llama(), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readout": "sign-constrained"}, "the sign-constrained readout"),
        ({"side": "output"}, "the output side"),
        ({"strides": (1, 4)}, r"strides \(1, 4\)"),
    ],
    ids=str,
)
def test_to_peft_refuses_what_oft_has_not(llama, options, message, tmp_path):
    adapter = attach(llama, CUAConfig(**options))
    with pytest.raises(ValueError, match=message):
        to_peft(adapter, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


@pytest.mark.parametrize("gain", [False, True])
def test_to_peft_refuses_chosen_groups_and_gains(llama, gain, tmp_path):
    groups = None if gain else {"model.layers.1.self_attn.v_proj": torch.tensor([[3, 0, 8, 9]])}
    adapter = attach(llama, CUAConfig(gain=gain), groups)
    with pytest.raises(ValueError, match="in their order, without gains; this adapter does not"):
        to_peft(adapter, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


DAMAGE = {
    "NaN": lambda stored: {name: theta * torch.nan for name, theta in stored.items()},
    "nothing": lambda stored: {},
    "shapes": lambda stored: {name: theta[:-1].contiguous() for name, theta in stored.items()},
    "other block size": lambda stored: {name: torch.zeros(4, 28) for name in stored},
    "a module the model lacks": lambda stored: (
        stored | {"base_model.model.model.layers.9.x.oft_R.weight": torch.ones(1)}
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_refuses_damaged_parameters_and_leaves_the_model_alone(llama, make_llama, snapshot, damage, tmp_path):
    peft_checkpoint(llama, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file(damage(load_file(file)), file)
    model = make_llama()
    before = snapshot(model)
    with pytest.raises(ValueError, match=str(tmp_path)):
        from_peft(model, tmp_path)
    assert snapshot(model) == before


def test_refuses_a_folder_without_a_configuration_and_asks_no_hub(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(interop.PeftConfig, "from_pretrained", lambda *_: pytest.fail("asked"))
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json is missing; .* is no checkpoint of PEFT"):
        from_peft(llama, tmp_path)


def test_refuses_a_truncated_file(llama, make_llama, snapshot, tmp_path):
    peft_checkpoint(llama, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    model = make_llama()
    before = snapshot(model)
    with pytest.raises(ValueError, match="truncated or damaged"):
        from_peft(model, tmp_path)
    assert snapshot(model) == before


def test_the_checkpoint_asks_peft_for_the_exact_transform(llama, tmp_path):
    to_peft(attach(llama, CUAConfig(block_size=8)), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["oft_block_size"], config["use_cayley_neumann"]) == ("OFT", 8, False)
