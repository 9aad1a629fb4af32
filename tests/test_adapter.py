import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

import cua
from cua import READOUTS, CayleyLinear, CUAConfig, attach

SIDES = ("input", "output")
V_PROJ = [f"model.layers.{i}.self_attn.v_proj" for i in range(4)]


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("readout", READOUTS)
def test_a_new_adapter_changes_no_bit(llama, ids, readout, side):
    base = logits(llama, ids)
    targets = ("q_proj", "v_proj", "down_proj", "lm_head") if side == "input" else ("q_proj", "v_proj", "down_proj")
    adapter = attach(llama, CUAConfig(targets, side=side, readout=readout))
    assert len(adapter.modules) == 3 * 4 + (side == "input")
    assert torch.equal(logits(llama, ids), base)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("readout", READOUTS)
def test_a_moved_adapter_differs_and_comes_off(llama, ids, move, readout, side):
    base, modules = logits(llama, ids), dict(llama.named_modules())
    adapter = move(attach(llama, CUAConfig(side=side, readout=readout)))
    moved = logits(llama, ids)
    assert (moved - base).abs().max() > 0.1
    with adapter.disabled():
        assert torch.equal(logits(llama, ids), base)
    assert torch.equal(logits(llama, ids), moved)
    with pytest.raises(KeyError, match="inside"), adapter.disabled():
        raise KeyError("inside")
    assert torch.equal(logits(llama, ids), moved)
    assert adapter.detach() is llama
    assert dict(llama.named_modules()) == modules
    assert torch.equal(logits(llama, ids), base)


@pytest.mark.parametrize("readout", READOUTS)
def test_disabled_inside_disabled_stays_disabled(llama, ids, move, readout):
    base = logits(llama, ids)
    adapter = move(attach(llama, CUAConfig(readout=readout)))
    with adapter.disabled():
        with adapter.disabled():
            pass
        assert torch.equal(logits(llama, ids), base)


def test_embedded_model_unchanged_at_zero_and_restored(embedded, sentence, move):
    model, _ = embedded
    base, modules = logits(model, sentence), dict(model.named_modules())
    for readout in READOUTS:
        adapter = attach(model, CUAConfig(readout=readout))
        try:
            assert torch.equal(logits(model, sentence), base)
            move(adapter)
            with adapter.disabled():
                assert torch.equal(logits(model, sentence), base)
            assert not torch.allclose(logits(model, sentence), base, atol=0.1)
        finally:
            adapter.detach()
        assert dict(model.named_modules()) == modules


def test_embedded_model_parameter_counts(embedded):
    model, _ = embedded
    for layers, count in ((15,), 864), (None, 25_920):
        adapter = attach(model, CUAConfig(layers=layers))
        text = str(adapter)
        adapter.detach()
        assert adapter.n_parameters == sum(p.numel() for p in adapter.parameters()) == count
        assert f"trainable {count:,}" in text
        assert "134,515,008" in text


@pytest.mark.parametrize("b", [2, 4, 8, 16])
@pytest.mark.parametrize(("side", "width"), [("input", 32), ("output", 16)])
def test_parameter_count_formula(llama, side, width, b):
    adapter = attach(llama, CUAConfig(layers=(1, 3), side=side, block_size=b))
    assert adapter.n_parameters == 2 * (width // b) * (b * (b - 1) // 2)
    assert f"trainable {adapter.n_parameters:,}" in str(adapter)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("b", [2, 8, 16])
def test_the_wrapped_layer_is_the_dense_formula(b, bias, side, move):
    torch.manual_seed(0)
    layer = nn.Linear(48, 32, bias=bias).double()
    model = nn.Sequential(layer)
    adapter = move(attach(model, CUAConfig("0", side=side, block_size=b)))
    q = torch.block_diag(*adapter.modules["0"].blocks())
    x = torch.randn(5, 48).double()
    expected = layer(x @ q.T) if side == "input" else layer(x) @ q.T
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)


def dense_matrix(blocks, b, strides):
    """Each stride as blocks on the diagonal, after the permutation that makes components so far apart neighbours."""
    dense = torch.eye(b * len(blocks) // len(strides)).double()
    for stride, q in zip(strides, blocks.chunk(len(strides)), strict=True):
        order = np.arange(len(dense)).reshape(-1, b, stride).swapaxes(1, 2).ravel()
        permutation = torch.eye(len(dense)).double()[order]
        dense = permutation.T @ torch.block_diag(*q) @ permutation @ dense
    return dense


STRIDES = [(4, (1, 4)), (2, (1, 2, 4, 8)), (3, (1, 3)), (4, (4, 1, 4)), (4, (3, 12)), (2, (5, 1)), (4, (1, 1))]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("b", "strides"), [*STRIDES, (4, (1,)), (4, (4,))])
def test_strides_are_the_dense_matrix(b, strides, side, move):
    torch.manual_seed(0)
    layer = nn.Linear(720, 720).double()
    model = nn.Sequential(layer)
    adapter = move(attach(model, CUAConfig("0", side=side, block_size=b, strides=strides)))
    blocks = adapter.modules["0"].blocks()
    assert blocks.shape == (len(strides) * 720 // b, b, b)
    q = dense_matrix(blocks, b, strides)
    torch.testing.assert_close(q @ q.T, torch.eye(720).double(), rtol=0, atol=1e-13)
    x = torch.randn(2, 5, 720).double()
    expected = layer(x @ q.T) if side == "input" else layer(x) @ q.T
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(("b", "strides"), [(4, (1, 4)), (2, (1, 2, 4, 8)), (4, (2, 1))])
def test_new_blocks_of_any_stride_change_no_bit(llama, ids, b, strides, readout, side):
    base = logits(llama, ids)
    adapter = attach(llama, CUAConfig(side=side, block_size=b, strides=strides, readout=readout))
    assert torch.equal(logits(llama, ids), base)
    llama(ids, labels=ids).loss.backward()
    for module in adapter.modules.values():
        assert all(part.abs().max() > 0 for part in module.theta.grad.chunk(len(strides)))


def test_one_stride_is_the_first_of_two(llama, make_llama, ids, move):
    deep, flat = attach(llama, CUAConfig(strides=(1, 4))), make_llama()
    plain = move(attach(flat, CUAConfig()))
    with torch.no_grad():
        for theta, one in zip(deep.parameters(), plain.parameters(), strict=True):
            theta[: len(one)] = one
    torch.testing.assert_close(logits(llama, ids), logits(flat, ids), rtol=0, atol=1e-6)
    assert "strides 1, 4" in str(deep)
    assert "strides" not in str(plain)
    assert [(stride, len(q)) for stride, q in deep.modules[V_PROJ[0]].blocks_by_stride()] == [(1, 8), (4, 8)]
    assert deep.n_parameters == 2 * plain.n_parameters


GROUPS = {"0": torch.tensor([[30, 2, 11, 7], [0, 31, 5, 6], [20, 9, 1, 3]])}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("gain", [False, True])
def test_blocks_of_chosen_components_are_the_dense_matrix(side, readout, gain, move):
    torch.manual_seed(0)
    layer = nn.Linear(32, 32).double()
    model = nn.Sequential(layer)
    adapter = move(attach(model, CUAConfig("0", side=side, readout=readout, gain=gain), GROUPS))
    assert adapter.n_parameters == 3 * (7 if gain else 6)
    assert ("a gain each" in str(adapter)) == gain
    log_gain = adapter.parameters()[1].tolist() if gain else [0, 0, 0]
    x = torch.randn(2, 5, 32).double()
    before, z = x.clone(), x if side == "input" else layer(x)
    turned = z.clone()
    for q, group, log in zip(adapter.modules["0"].blocks(), GROUPS["0"], log_gain, strict=True):
        y = z[..., group] @ q.T * math.exp(log)
        turned[..., group] = y if readout == "exact" else torch.copysign(y, z[..., group])
    torch.testing.assert_close(model(x), layer(turned) if side == "input" else turned, rtol=0, atol=1e-12)
    assert torch.equal(x, before)


def test_groups_in_order_are_the_plain_blocks_bit_for_bit(llama, make_llama, ids, move):
    move(attach(llama, CUAConfig(side="output")))
    grouped, in_order = make_llama(), torch.arange(16).view(4, 4)
    move(attach(grouped, CUAConfig(side="output"), dict.fromkeys(V_PROJ, in_order)))
    assert torch.equal(logits(grouped, ids), logits(llama, ids))


@pytest.mark.parametrize("side", SIDES)
def test_new_groups_change_no_bit_and_have_gradients(llama, ids, side):
    base = logits(llama, ids)
    groups = {V_PROJ[1]: torch.tensor([[3, 0, 8, 9]]), V_PROJ[3]: torch.tensor([[15, 1, 2, 4], [5, 7, 6, 11]])}
    adapter = attach(llama, CUAConfig(side=side), groups)
    assert torch.equal(logits(llama, ids), base)
    assert list(adapter.modules) == [V_PROJ[1], V_PROJ[3]]
    assert adapter.first_layer == 1
    llama(ids, labels=ids).loss.backward()
    assert all((theta.grad != 0).all() for theta in adapter.parameters())


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("strides", [(1,), (1, 4)])
def test_gains_scale_what_leaves_each_block(llama, make_llama, ids, move, readout, strides):
    """Zero is a gain of one, bit for bit; and with Q = I it is the factor itself."""
    config = CUAConfig(readout=readout, strides=strides, gain=True)
    adapter, plain = attach(llama, config), make_llama()
    assert torch.equal(logits(llama, ids), logits(plain, ids))
    with torch.no_grad():
        for module in adapter.modules.values():
            module.log_gain.copy_(torch.linspace(-1, 1, len(module.log_gain)))
        for n, layer in enumerate(plain.model.layers):
            first, *more = (g.exp() for g in adapter.modules[V_PROJ[n]].log_gain.chunk(len(strides)))
            layer.self_attn.v_proj.weight *= first.repeat_interleave(4)
            for gain in more:  # stride 4: component 16 n + 4 j + i is number j of block 4 n + i
                layer.self_attn.v_proj.weight *= gain.view(-1, 1, 4).expand(-1, 4, -1).flatten()
    assert not torch.allclose(logits(llama, ids), logits(make_llama(), ids), atol=0.1)
    torch.testing.assert_close(logits(llama, ids), logits(plain, ids), rtol=0, atol=1e-4)
    llama(ids, labels=ids).loss.backward()
    assert all((module.log_gain.grad != 0).all() for module in adapter.modules.values())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("strides", [(1,), (1, 4)])
def test_merge_with_gains(make_llama, ids, move, side, strides):
    model = make_llama(attention_bias=True).double()
    for layer in model.model.layers:
        nn.init.normal_(layer.self_attn.v_proj.bias)
    move(adapter := attach(model, CUAConfig(side=side, strides=strides, gain=True)))
    moved = logits(model, ids)
    adapter.merge()
    assert (logits(model, ids) - moved).abs().max() <= 1e-13 * moved.abs().max()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=str)
def test_merge_with_groups(make_llama, ids, move, dtype, tolerance, side):
    model = make_llama(attention_bias=True).to(dtype)
    for layer in model.model.layers:
        nn.init.normal_(layer.self_attn.v_proj.bias)
    base = logits(model, ids)
    groups = {V_PROJ[0]: torch.tensor([[3, 0, 8, 9], [1, 15, 2, 4]]), V_PROJ[2]: torch.tensor([[0, 1, 2, 3]])}
    move(adapter := attach(model, CUAConfig(side=side), groups), size=1.0)
    moved = logits(model, ids)
    assert (moved - base).abs().max() > 0.1
    adapter.merge()
    assert (logits(model, ids) - moved).abs().max() <= tolerance * moved.abs().max()


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ({}, {}, "groups of 0 layers"),
        ({V_PROJ[0]: torch.arange(8).view(2, 4)}, {"strides": (1, 4)}, r"strides=\(1, 4\): groups need"),
        ({V_PROJ[0]: torch.arange(8).view(2, 4)}, {"layers": (1,)}, "layers.0.self_attn.v_proj, which target_modules"),
        ({"lm_head": torch.arange(8).view(2, 4)}, {}, "groups name lm_head, which target_modules"),
        ({V_PROJ[0]: torch.arange(8).view(4, 2)}, {}, r"torch.int64 \(4, 2\); expected int64 \(n_blocks, 4\)"),
        ({V_PROJ[0]: torch.zeros(0, 4).long()}, {}, r"torch.int64 \(0, 4\); expected int64 \(n_blocks, 4\)"),
        ({V_PROJ[0]: torch.arange(4)}, {}, r"torch.int64 \(4,\); expected int64"),
        ({V_PROJ[0]: torch.arange(8.0).view(2, 4)}, {}, "torch.float32"),
        ({V_PROJ[0]: torch.tensor([[0, 1, 2, 2]])}, {}, "expected distinct components from 0 to 31"),
        ({V_PROJ[0]: torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0]])}, {}, "expected distinct components"),
        ({V_PROJ[0]: torch.tensor([[0, 1, 2, -1]])}, {}, "expected distinct components"),
        ({V_PROJ[0]: torch.tensor([[0, 1, 2, 16]])}, {"side": "output"}, "expected distinct components from 0 to 15"),
    ],
    ids=str,
)
def test_wrong_groups_are_named_and_change_nothing(llama, snapshot, groups, options, message):
    before = snapshot(llama)
    with pytest.raises(ValueError, match=message):
        attach(llama, CUAConfig(**options), groups)
    assert snapshot(llama) == before


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("b", "strides"), [(4, (1, 4)), (2, (1, 2, 4)), (2, (8, 1))])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=str)
def test_merge_with_strides(make_llama, ids, move, dtype, tolerance, b, strides, side):
    model = make_llama(attention_bias=True, mlp_bias=True).to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    base = logits(model, ids)
    config = CUAConfig(("q_proj", "v_proj", "down_proj"), side=side, block_size=b, strides=strides)
    adapter = move(attach(model, config))
    moved = logits(model, ids)
    assert (moved - base).abs().max() > 0.1
    adapter.merge()
    assert (logits(model, ids) - moved).abs().max() <= tolerance * moved.abs().max()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=str)
def test_merge_equals_unmerged(make_llama, ids, move, dtype, tolerance, bias, side):
    model = make_llama(attention_bias=bias, mlp_bias=bias).to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    modules = dict(model.named_modules())
    adapter = move(attach(model, CUAConfig(("q_proj", "v_proj", "down_proj"), side=side)))
    moved = logits(model, ids)
    assert adapter.merge() is model
    assert dict(model.named_modules()) == modules
    assert not any(isinstance(module, CayleyLinear) for module in model.modules())
    assert (logits(model, ids) - moved).abs().max() <= tolerance * moved.abs().max()


def test_merge_of_an_untied_head(llama, ids, move):
    adapter = move(attach(llama, CUAConfig(("lm_head",))))
    moved = logits(llama, ids)
    adapter.merge()
    torch.testing.assert_close(logits(llama, ids), moved, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("again", ["merge", "detach"])
@pytest.mark.parametrize("first", ["merge", "detach"])
def test_an_adapter_comes_off_once(llama, ids, move, snapshot, first, again):
    adapter = move(attach(llama, CUAConfig(layers=(2,))))
    getattr(adapter, first)()
    newer = move(attach(llama, CUAConfig(layers=(2,))), seed=1)
    before = snapshot(llama)
    with pytest.raises(ValueError, match=r"layers.2.self_attn.v_proj does not carry this adapter any more"):
        getattr(adapter, again)()
    assert snapshot(llama) == before
    assert list(newer.modules.values()) == [m for m in llama.modules() if isinstance(m, CayleyLinear)]


def test_merge_refuses_the_sign_constrained_readout(llama, ids, move, snapshot):
    adapter = move(attach(llama, CUAConfig(readout="sign-constrained")))
    before, moved = snapshot(llama), logits(llama, ids)
    with pytest.raises(ValueError, match="sign-constrained readout is not a linear map"):
        adapter.merge()
    assert snapshot(llama) == before
    assert torch.equal(logits(llama, ids), moved)


def test_merge_refuses_a_tied_weight_and_changes_no_other(tied_llama, ids, move, snapshot):
    adapter = move(attach(tied_llama, CUAConfig(("v_proj", "lm_head"))))
    before, moved = snapshot(tied_llama), logits(tied_llama, ids)
    with pytest.raises(ValueError, match=r"lm_head: its weight is shared"):
        adapter.merge()
    assert snapshot(tied_llama) == before
    assert torch.equal(logits(tied_llama, ids), moved)


def test_tied_weights_elsewhere_do_not_hinder_merge(tied_llama, ids, move):
    adapter = move(attach(tied_llama, CUAConfig()))
    moved = logits(tied_llama, ids)
    adapter.merge()
    torch.testing.assert_close(logits(tied_llama, ids), moved, rtol=1e-5, atol=1e-5)


def test_only_the_adapter_is_trainable(llama, ids):
    assert all(p.requires_grad for p in llama.parameters())
    adapter = attach(llama, CUAConfig())
    trainable = {name for name, p in llama.named_parameters() if p.requires_grad}
    assert trainable == {f"{name}.theta" for name in V_PROJ}
    llama(ids, labels=ids).loss.backward()
    assert all(theta.grad.abs().max() > 0 for theta in adapter.parameters())
    assert {name for name, p in llama.named_parameters() if p.grad is not None} == trainable


@pytest.mark.parametrize(
    ("targets", "layers", "expected"),
    [
        (("v_proj",), None, V_PROJ),
        (["self_attn.v_proj"], None, V_PROJ),
        (("v_proj",), (2,), V_PROJ[2:3]),
        (("v_proj",), [1, 3], [V_PROJ[1], V_PROJ[3]]),
        (("v_proj",), range(2), V_PROJ[:2]),
        ((V_PROJ[1],), None, V_PROJ[1:2]),
        (r".*\.[02]\..*v_proj", None, [V_PROJ[0], V_PROJ[2]]),
        (r".*v_proj", (1,), V_PROJ[1:2]),
        (("gate_proj", "up_proj"), (0,), ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]),
        (("lm_head",), None, ["lm_head"]),
        (r"lm_head|model\.layers\.0\..*o_proj", None, ["model.layers.0.self_attn.o_proj", "lm_head"]),
    ],
    ids=str,
)
def test_selection(llama, targets, layers, expected):
    adapter = attach(llama, CUAConfig(targets, layers))
    assert list(adapter.modules) == expected
    wrapped = [name for name, module in llama.named_modules() if isinstance(module, CayleyLinear)]
    assert wrapped == expected
    assert all(adapter.modules[name] is llama.get_submodule(name) for name in expected)


def test_layer_one_is_not_layer_eleven(make_llama):
    adapter = attach(make_llama(num_hidden_layers=12), CUAConfig(layers=(1,)))
    assert list(adapter.modules) == [V_PROJ[1]]


def test_a_suffix_is_a_whole_name(llama):
    with pytest.raises(ValueError, match="no linear layer matches"):
        attach(llama, CUAConfig(("proj",)))


@pytest.mark.parametrize(("layers", "first"), [(None, 0), ((2,), 2), ((3, 1), 1)])
def test_first_layer(llama, layers, first):
    assert attach(llama, CUAConfig(layers=layers)).first_layer == first


def test_two_adapters_on_different_layers(llama, ids, move):
    first, second = (attach(llama, CUAConfig(layers=(layer,))) for layer in (1, 2))
    base = logits(llama, ids)
    move(first)
    one = logits(llama, ids)
    move(second)
    assert not torch.allclose(one, base)
    assert not torch.allclose(logits(llama, ids), one)
    second.detach()
    assert torch.equal(logits(llama, ids), one)


def test_what_another_adapter_trains_is_not_counted_as_frozen(llama):
    frozen = sum(p.numel() for p in llama.parameters())
    attach(llama, CUAConfig(target_modules=("o_proj",)))
    second = attach(llama, CUAConfig(layers=(0,)))
    assert f"frozen {frozen:,}:" in str(second)
    second.detach()
    assert f"frozen {frozen:,}:" in str(second)


def test_a_second_adapter_leaves_the_first_trainable(llama):
    first, second = (attach(llama, CUAConfig(layers=(layer,))) for layer in (1, 2))
    assert all(theta.requires_grad for theta in [*first.parameters(), *second.parameters()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readout": "signed"}, "unknown readout 'signed'; known: exact, sign-constrained"),
        ({"side": "left"}, "unknown side 'left'; known: input, output"),
        ({"block_size": 1}, "block_size=1: expected a whole number from 2 to 64"),
        ({"block_size": 65}, "block_size=65"),
        ({"block_size": -4}, "block_size=-4"),
        ({"block_size": True}, "block_size=True"),
        ({"block_size": 4.0}, "block_size=4.0"),
        ({"block_size": "4"}, "block_size='4'"),
        ({"strides": ()}, r"strides=\(\): expected whole numbers from 1, such as"),
        ({"strides": (1, 0)}, r"strides=\(1, 0\)"),
        ({"strides": (True,)}, r"strides=\(True,\)"),
        ({"strides": (1, 4.0)}, r"strides=\(1, 4.0\)"),
        ({"strides": 4}, "strides=4"),
        ({"target_modules": ()}, "expected suffixes such as"),
        ({"target_modules": []}, "expected suffixes such as"),
        ({"target_modules": ""}, "expected suffixes such as"),
        ({"target_modules": "(v_proj"}, "not a regular expression"),
        ({"layers": (-1,)}, r"layers=\(-1,\)"),
        ({"layers": ()}, r"layers=\(\)"),
        ({"layers": (1.0,)}, r"layers=\(1.0,\)"),
        ({"layers": (True,)}, r"layers=\(True,\)"),
        ({"layers": 15}, "layers=15"),
        ({"layers": "15"}, "layers='15'"),
    ],
    ids=str,
)
def test_config_names_the_wrong_field(options, message):
    with pytest.raises(ValueError, match=message):
        CUAConfig(**options)


@pytest.mark.parametrize("options", [{"target_modules": {"v_proj"}}, {"layers": {1, 2}}], ids=str)
def test_a_set_in_the_config_is_accepted_and_saved_or_refused(llama, options, tmp_path):
    try:
        config = CUAConfig(**options)
    except ValueError:
        return
    cua.save(attach(llama, config), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 5}, "block_size=5 does not divide the input width 32 of .*: 2, 4, 8, 16, 32$"),
        ({"block_size": 32, "side": "output"}, "block_size=32 does not divide the output width 16 .*: 2, 4, 8, 16$"),
        ({"target_modules": ("v_proj", "down_proj"), "block_size": 64}, "input width 32 of .*: 2, 4, 8, 16, 32$"),
        (
            {"strides": (1, 4, 16)},
            r"strides=\(1, 4, 16\): block_size \* 16 = 64 does not divide the input width 32 of ",
        ),
        ({"strides": (3,)}, r"block_size \* 3 = 12 does not divide the input width 32 of "),
        ({"strides": (1, 8), "side": "output"}, r"block_size \* 8 = 32 does not divide the output width 16 of "),
        ({"target_modules": ("value",)}, r"suffixes in this model: down_proj, .*v_proj; decoder layers: 0 to 3"),
        ({"layers": (4,)}, r"layers=\(4,\); suffixes in this model: .*v_proj; decoder layers: 0 to 3"),
        (
            {"target_modules": "v_proj"},
            r"no linear layer matches target_modules='v_proj'.*, a tuple \(...,\) holds suffixes",
        ),
        (
            {"layers": (3, 99, 7)},
            r"no linear layer matches layer 99 or layer 7 of target_modules=\('v_proj',\), layers",
        ),
        ({"target_modules": ("v_proj", "k_porj"), "layers": (0,)}, "matches target 'k_porj' of .*: .*k_proj"),
        ({"target_modules": ("lm_head",), "layers": (0,)}, "no linear layer matches"),
        ({"target_modules": ("embed_tokens",)}, "no linear layer matches"),
    ],
    ids=str,
)
def test_attach_refuses_and_leaves_the_model_alone(llama, snapshot, options, message):
    llama.model.layers[0].requires_grad_(False)
    before = snapshot(llama)
    with pytest.raises(ValueError, match=message):
        attach(llama, CUAConfig(**options))
    assert snapshot(llama) == before


def test_attach_refuses_a_layer_that_has_an_adapter(llama, snapshot):
    adapter = attach(llama, CUAConfig(layers=(2,)))
    before = snapshot(llama)
    with pytest.raises(ValueError, match=rf"{V_PROJ[2]} already has an adapter"):
        attach(llama, CUAConfig())
    assert snapshot(llama) == before
    adapter.detach()
    assert len(attach(llama, CUAConfig()).modules) == 4


def test_attach_to_a_model_without_linear_layers():
    with pytest.raises(ValueError, match="suffixes in this model: none"):
        attach(nn.Sequential(nn.ReLU()), CUAConfig())


def test_generation_equals_that_of_the_merged_model(llama, ids, move):
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    base = llama.generate(ids, **options)
    adapter = move(attach(llama, CUAConfig()))
    adapted = llama.generate(ids, **options)
    adapter.merge()
    assert torch.equal(llama.generate(ids, **options), adapted)
    assert not torch.equal(adapted, base)


@pytest.mark.parametrize("side", SIDES)
def test_bfloat16_weights_float32_parameters(llama, ids, move, side):
    model = llama.to(torch.bfloat16)
    base = logits(model, ids)
    adapter = attach(model, CUAConfig(side=side))
    assert all(theta.dtype == torch.float32 for theta in adapter.parameters())
    assert torch.equal(logits(model, ids), base)
    move(adapter)
    out = model(ids, labels=ids)
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert all(theta.grad.dtype == torch.float32 and theta.grad.abs().max() > 0 for theta in adapter.parameters())
    adapter.merge()
    assert model.model.layers[0].self_attn.v_proj.weight.dtype == torch.bfloat16
    torch.testing.assert_close(logits(model, ids), out.logits, rtol=0, atol=0.5)


def test_float64_weights_float64_parameters(llama):
    assert all(theta.dtype == torch.float64 for theta in attach(llama.double(), CUAConfig()).parameters())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("readout", READOUTS)
def test_gradient_checkpointing_gives_the_same_gradient(llama, ids, move, readout):
    adapter = move(attach(llama.train(), CUAConfig(readout=readout)))
    calls = []
    adapter.modules[V_PROJ[2]].register_forward_hook(lambda *_: calls.append(1))

    def gradients():
        llama.zero_grad()
        llama(ids, labels=ids, use_cache=False).loss.backward()
        return torch.stack([theta.grad for theta in adapter.parameters()])

    plain = gradients()
    assert len(calls) == 1
    llama.gradient_checkpointing_enable()
    torch.testing.assert_close(gradients(), plain, rtol=0, atol=1e-6)
    assert len(calls) == 1 + 2, "the layer runs forward, and again for the backward pass"
    assert plain.abs().max() > 1e-3


@pytest.mark.parametrize("readout", READOUTS)
def test_the_compiled_model_agrees_with_the_eager_one(make_llama, ids, move, readout):
    model = make_llama(num_hidden_layers=1)
    adapter = move(attach(model, CUAConfig(readout=readout)))
    (theta,) = adapter.parameters()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    results = {}
    for name, run in ("eager", model), ("compiled", compiled):
        theta.grad = None
        out = run(input_ids=ids, labels=ids, use_cache=False)
        out.loss.backward()
        results[name] = out.logits.detach(), theta.grad
    torch.testing.assert_close(results["compiled"], results["eager"], rtol=0, atol=1e-5)
    assert results["eager"][1].abs().max() > 1e-3


@pytest.fixture
def offloaded(llama, tmp_path) -> LlamaForCausalLM:
    """The tiny model again, with its upper half on disk."""
    llama.save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "disk", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "cpu" if i < 2 else "disk" for i in range(4)}
    return LlamaForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "offload")
    ).eval()


@pytest.mark.parametrize("side", SIDES)
def test_a_device_map_with_disk_offload(llama, offloaded, ids, move, snapshot, tmp_path, side):
    assert offloaded.model.layers[3].self_attn.v_proj.weight.is_meta
    assert not offloaded.model.layers[0].self_attn.v_proj.weight.is_meta
    base = logits(llama, ids)
    adapter = attach(offloaded, CUAConfig(side=side))
    assert not any(theta.is_meta for theta in adapter.parameters())
    assert torch.equal(logits(offloaded, ids), base)
    move(adapter)
    move(attach(llama, CUAConfig(side=side)))
    torch.testing.assert_close(logits(offloaded, ids), logits(llama, ids), rtol=0, atol=1e-6)
    before = snapshot(offloaded)
    with pytest.raises(ValueError, match=rf"{V_PROJ[2]}: its weights are offloaded or quantised"):
        adapter.merge()
    assert snapshot(offloaded) == before
    with pytest.raises(ValueError, match=rf"{V_PROJ[2]}: its weights are offloaded"):
        cua.save(adapter, tmp_path / "adapter")
