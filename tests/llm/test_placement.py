import pytest
import torch

from cua import CUAConfig, attach, skew
from cua.config import SIDES
from cua.llm.placement import choose_groups, rotation_gradients, weight_gradients
from cua.llm.prefix import SplitModel

V_PROJ = [f"model.layers.{i}.self_attn.v_proj" for i in range(4)]


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(97, (3, 16), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("target", ["v_proj", "k_proj", "down_proj"])
def test_the_gradient_is_that_of_one_block_of_all_components(make_llama, windows, target, side):
    """Autograd through Cayley blocks of the whole width; K and its mirror image move together."""
    layers, model = (1, 3), make_llama().requires_grad_(False)
    gradients = rotation_gradients(model, windows, CUAConfig((target,), layers, side))
    width = len(next(iter(gradients.values())))
    config = CUAConfig((target,), layers, side, block_size=width)
    adapter = attach(model, config)
    split = SplitModel(model, 0)
    (split.nll(split.below(windows), windows) / (3 * 15)).backward()
    assert list(gradients) == list(adapter.modules)
    for name, module in adapter.modules.items():
        expected = skew(module.theta.grad[0], width)
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(gradients[name], expected, rtol=1e-4, atol=1e-6)


def test_weights_have_the_gradients_of_autograd(make_llama, windows):
    model = make_llama()
    model(windows, labels=windows).loss.backward()
    wanted = {name: model.get_submodule(name).weight.grad for name in (V_PROJ[1], "model.layers.3.mlp.down_proj")}
    found = weight_gradients(make_llama().requires_grad_(False), windows, wanted)
    assert list(found) == list(wanted)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6)


def test_measuring_leaves_the_model_as_it_was(frozen, windows, snapshot):
    before = snapshot(frozen)
    rotation_gradients(frozen, windows, CUAConfig())
    weight_gradients(frozen, windows, V_PROJ)
    assert snapshot(frozen) == before
    assert not any(layer._forward_hooks for layer in frozen.modules())
    assert all(parameter.grad is None for parameter in frozen.parameters())


def skew_matrix(width: int, entries: dict[tuple[int, int], float]) -> torch.Tensor:
    k = torch.zeros(width, width)
    for (i, j), value in entries.items():
        k[i, j], k[j, i] = value, -value
    return k


def test_blocks_grow_around_the_largest_gradients():
    gradients = {
        "a": skew_matrix(9, {(0, 7): -9.0, (7, 3): 5.0, (0, 3): -1.0, (7, 8): 5.5, (1, 2): 4.0, (2, 5): 0.5}),
        "b": skew_matrix(6, {(4, 5): 7.0, (0, 1): 1.0}),
        "c": skew_matrix(6, {(4, 5): 0.1}),
    }
    # a: 0 and 7 begin; 3 adds 5 + 1 and 8 adds 5.5, so 3 joins; then 1 and 2, and 5.
    assert {name: g.tolist() for name, g in choose_groups(gradients, 3, 3).items()} == {
        "a": [[0, 7, 3], [1, 2, 5]],
        "b": [[4, 5, 0]],
    }
    assert {name: g.tolist() for name, g in choose_groups(gradients, 2, 2).items()} == {"a": [[0, 7]], "b": [[4, 5]]}


@pytest.mark.parametrize("b", [2, 4, 8])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_groups_fit_the_model_and_beat_components_in_order(frozen, windows, b, share):
    config = CUAConfig(side="output", block_size=b)
    gradients = rotation_gradients(frozen, windows, config)
    n_blocks = max(1, round(share * 4 * 16 / b))
    groups = choose_groups(gradients, b, n_blocks)
    adapter = attach(frozen, config, groups)
    assert sum(len(module.theta) for module in adapter.modules.values()) == n_blocks

    def inside(groups):
        return sum(gradients[n][g][:, g].abs().sum() for n, several in groups.items() for g in several)

    in_order = [(gradients[n][g][:, g].abs().sum(), n, g) for n in gradients for g in torch.arange(16).view(-1, b)]
    best = sorted((score.item() for score, _, _ in in_order), reverse=True)[:n_blocks]
    assert inside(groups) > sum(best)


@pytest.mark.parametrize("n_blocks", [0, -1, 17])
def test_too_many_blocks_are_refused(n_blocks):
    gradients = dict.fromkeys(V_PROJ, skew_matrix(16, {(0, 1): 1.0}))
    with pytest.raises(ValueError, match="these layers have components for 1 to 16 blocks of 4"):
        choose_groups(gradients, 4, n_blocks)
