import pytest
import torch

from cua.llm.compression import METHODS, Compression, compress, input_moments, quantised, tensor_train, truncated_svd


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(97, (4, 16), generator=torch.Generator().manual_seed(3))


def problem(out: int, in_: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and moments of inputs some of which are far larger than others."""
    torch.manual_seed(seed)
    x = torch.randn(500, in_).double() @ torch.randn(in_, in_).double() * torch.logspace(-1, 1, in_).double()
    return torch.randn(out, in_), x.mT @ x / 500


def output_error(weight: torch.Tensor, small: torch.Tensor, moment: torch.Tensor) -> float:
    difference = (weight - small).double()
    return (difference @ moment @ difference.mT).trace().item()


def test_the_svd_is_the_best_matrix_of_its_rank_for_these_inputs():
    weight, moment = problem(24, 36)
    small, bits = truncated_svd(weight, 0.5, moment)
    rank = int(0.5 * 24 * 36 / 60)
    assert bits == 16 * rank * 60
    assert torch.linalg.matrix_rank(small, atol=1e-4) == rank
    # Eckart-Young on W C^(1/2): what is lost is what its small singular values carry.
    singular = torch.linalg.svdvals(weight.double() @ torch.linalg.cholesky(moment))
    assert output_error(weight, small, moment) == pytest.approx((singular[rank:] ** 2).sum().item(), rel=1e-3)
    u, s, v = torch.linalg.svd(weight)
    blind = (u[:, :rank] * s[:rank]) @ v[:rank]
    assert output_error(weight, small, moment) < 0.8 * output_error(weight, blind, moment)


def test_fewer_tokens_than_inputs_are_enough():
    torch.manual_seed(0)
    x = torch.randn(6, 36)
    weight = torch.randn(24, 36)
    small, _ = truncated_svd(weight, 0.5, (x.mT @ x).double() / 6)  # rank 7: all that these inputs can tell
    torch.testing.assert_close(small @ x.mT, weight @ x.mT, rtol=0, atol=0.05)


def test_a_matrix_of_low_rank_is_kept():
    torch.manual_seed(0)
    weight = torch.randn(24, 5) @ torch.randn(5, 36)
    small, _ = truncated_svd(weight, 0.5, problem(24, 36)[1])
    torch.testing.assert_close(small, weight, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("out", "in_"), [(24, 36), (36, 24), (7, 12)])
def test_a_sum_of_kronecker_products_is_kept_and_more_is_not(out, in_):
    torch.manual_seed(0)
    _, moment = problem(out, in_)
    factors = {24: (4, 6), 36: (6, 6), 7: (1, 7), 12: (3, 4)}
    (o1, o2), (i1, i2) = factors[out], factors[in_]
    products = [torch.kron(torch.randn(o1, i1), torch.randn(o2, i2)) for _ in range(4)]
    scale = moment.diagonal().sqrt().float()
    cores = o1 * i1 + o2 * i2
    for bond in (1, 2, min(4, o1 * i1)):
        weight = sum(products[:bond]) / scale  # the scales of the columns are taken out again
        small, bits = tensor_train(weight, (bond + 0.5) * cores / (out * in_), moment)
        assert bits == 16 * bond * cores
        torch.testing.assert_close(small, weight, rtol=0, atol=1e-4 * weight.abs().max().item())
    if min(o1 * i1, o2 * i2) > 3:
        small, _ = tensor_train(weight, 3.5 * cores / (out * in_), moment)
        assert (small - weight).norm() > 0.01 * weight.norm()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_quantised_weights_have_few_levels_in_each_group(bits):
    weight, moment = problem(8, 128)
    small, size = quantised(weight, bits, 32, moment)
    assert size == 8 * 128 * bits + 8 * 4 * 32
    for group in small.view(-1, 32):
        assert len(group.unique()) <= 2**bits
        steps = group.unique().diff()
        whole = steps / steps.min()
        assert bits > 4 or torch.allclose(whole, whole.round(), atol=0.05), "evenly spaced"
    assert (small.view(-1, 32).amax(1) <= weight.view(-1, 32).amax(1) + 1e-5).all()


@pytest.mark.parametrize("group", [5, 48])
def test_groups_do_not_cross_rows(group):
    """48 divides four rows of 36 together, but not one of them."""
    with pytest.raises(ValueError, match=f"group={group} does not divide the 36 weights of a row"):
        quantised(torch.ones(4, 36), 4, group, torch.eye(36))


def test_more_bits_and_smaller_groups_lose_less_and_clipping_never_hurts():
    weight, moment = problem(8, 128)

    def error(bits: int, group: int) -> float:
        difference = quantised(weight, bits, group, moment)[0] - weight
        return (moment.diagonal() * difference.double() ** 2).sum().item()

    assert error(2, 32) > error(3, 32) > error(4, 32) > error(8, 32) > 0
    assert error(3, 128) > error(3, 32) > error(3, 8)
    low, high = weight.view(-1, 32).amin(1, keepdim=True), weight.view(-1, 32).amax(1, keepdim=True)
    plain = (((weight.view(-1, 32) - low) / (high - low) * 7).round() / 7 * (high - low) + low).view_as(weight)
    assert error(3, 32) < (moment.diagonal() * (plain - weight).double() ** 2).sum().item()
    assert torch.allclose(quantised(torch.ones(2, 32), 2, 32, torch.eye(32))[0], torch.ones(2, 32), atol=1e-6)


def test_moments_are_those_of_the_inputs(frozen, windows):
    compression = Compression("svd", layers=(1,), target_modules=("down_proj",))
    seen = []
    hook = frozen.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    frozen(windows)
    hook.remove()
    x = seen[0].flatten(0, 1)
    (name,), (moment,) = zip(*input_moments(frozen, windows, compression).items(), strict=True)
    assert name == "model.layers.1.mlp.down_proj"
    torch.testing.assert_close(moment.float(), x.mT @ x / len(x), rtol=1e-4, atol=1e-4)
    assert not any(layer._forward_pre_hooks for layer in frozen.modules())


@pytest.mark.parametrize("method", METHODS)
def test_compressing_changes_the_matched_projections_alone(frozen, windows, ids, method):
    compression = Compression(method, layers=(1, 3), kept=0.5, bits=3, group=8)
    moments = input_moments(frozen, windows, compression)
    before = {name: p.clone() for name, p in frozen.named_parameters()}
    logits = frozen(ids).logits
    share = compress(frozen, compression, moments)
    changed = {name for name, p in frozen.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"model.layers.{i}.mlp.{p}_proj.weight" for i in (1, 3) for p in ("gate", "up", "down")}
    assert torch.isfinite(frozen(ids).logits).all()
    assert (frozen(ids).logits - logits).abs().max() > 0.1
    # MLPs have 3 * 32 * 64 of the 2 * 32 * 48 + 3 * 32 * 64 weights of a layer; half of the layers are compressed.
    inside = 0.5 * 6144 / (6144 + 3072)
    left = {"svd": 0.5, "tensor train": 0.5, "quantised": (3 + 32 / 8) / 16}[method]
    assert share == pytest.approx(1 - inside * (1 - left), abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "pruned"}, "unknown method 'pruned'; known: svd, tensor train, quantised"),
        ({"method": "svd", "kept": 0.0}, "kept=0.0: a share above 0"),
        ({"method": "svd", "kept": 1.1}, "kept=1.1"),
        ({"method": "quantised", "bits": 1}, "bits=1, group=64: 2 to 8 bits"),
        ({"method": "quantised", "group": 1}, "groups of at least 2"),
    ],
    ids=str,
)
def test_a_compression_names_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        Compression(**options)
