import numpy as np
import pytest
import torch
from torch import Tensor

from cua import READOUTS, cayley, n_parameters, skew
from cua.readout import apply_blocks, block_matmul, sign_constrained

# (n_blocks, b): one block, many tiles, sizes that do not divide a tile, blocks as wide as a tile and wider.
SHAPES = [(1, 2), (1, 4), (1, 64), (7, 4), (8, 4), (9, 4), (144, 4), (37, 4), (17, 2), (13, 3), (50, 3), (31, 5)]
SHAPES += [(5, 8), (3, 16), (7, 32), (3, 33), (6, 64), (24, 24)]


def problem(n_blocks: int, b: int, *batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Random activations and orthogonal blocks."""
    generator = torch.Generator().manual_seed(n_blocks * 100 + b)
    theta = torch.randn(n_blocks, n_parameters(b), generator=generator, dtype=torch.float64)
    x = torch.randn(*batch, n_blocks * b, generator=generator, dtype=torch.float64)
    return x.to(dtype), cayley(skew(theta, b)).to(dtype)


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize(("n_blocks", "b"), SHAPES)
def test_equals_the_dense_block_diagonal_matrix(n_blocks, b, batch):
    x, q = problem(n_blocks, b, *batch)
    torch.testing.assert_close(block_matmul(x, q), x @ torch.block_diag(*q).T, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2), (torch.float16, 5e-3)], ids=str
)
def test_keeps_a_narrower_dtype(dtype, tolerance):
    x, q = problem(144, 4, 6, dtype=dtype)
    y = block_matmul(x, q)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), x.double() @ torch.block_diag(*q.double()).T, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("n_blocks", "b"), SHAPES)
def test_what_the_compiler_sees_is_the_same_product(n_blocks, b, monkeypatch):
    x, q = problem(n_blocks, b, 2, 3)
    expected = block_matmul(x, q)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(block_matmul(x, q), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("device", "n_products"), [("cpu", 5), ("meta", 1)])
def test_a_few_tiles_at_a_time_on_a_cpu_and_one_product_elsewhere(device, n_products, monkeypatch):
    """144 blocks of 4x4: 18 tiles of 8 blocks, four at a time."""
    products, bmm = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *given, **out: products.append(given) or bmm(*given, **out))
    x, q = (tensor.to(device) for tensor in problem(144, 4, 6))
    with torch.device("meta"):  # whatever the default device is
        y = block_matmul(x, q)
    assert (y.shape, y.device.type, len(products)) == (x.shape, device, n_products)


@pytest.mark.parametrize(("n_blocks", "b"), [(144, 4), (3, 33)])
def test_reads_strided_inputs(n_blocks, b):
    x, q = problem(n_blocks, b, 6)
    expected = x @ torch.block_diag(*q).T
    torch.testing.assert_close(block_matmul(x.mT.contiguous().mT, q.mT.contiguous().mT), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(block_matmul(x[:1].expand(4, -1), q), expected[:1].expand(4, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("readout", READOUTS.values(), ids=READOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n_blocks", "b"), SHAPES)
def test_identity_blocks_change_no_bit(n_blocks, b, dtype, readout):
    x, _ = problem(n_blocks, b, 9, dtype=dtype)
    assert torch.equal(readout(x, torch.eye(b, dtype=dtype).expand(n_blocks, b, b)), x)


@pytest.mark.parametrize(("n_blocks", "b"), [(1, 3), (5, 2), (3, 4), (2, 8)])
def test_exact_gradient_against_finite_differences(n_blocks, b):
    x, q = problem(n_blocks, b, 2, 3)
    assert torch.autograd.gradcheck(block_matmul, (x.requires_grad_(), q.requires_grad_()))


@pytest.mark.parametrize("needed", ["x", "q", "xq"])
@pytest.mark.parametrize(("n_blocks", "b"), SHAPES)
def test_exact_gradient_against_the_dense_matrix(n_blocks, b, needed):
    def run(product):
        x, q = problem(n_blocks, b, 2, 3)
        x.requires_grad_("x" in needed)
        q.requires_grad_("q" in needed)
        product(x, q).mul(torch.arange(n_blocks * b)).sum().backward()
        return [x.grad, q.grad]

    ours, dense = run(block_matmul), run(lambda x, q: x @ torch.block_diag(*q).T)
    for mine, theirs in zip(ours, dense, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize(("n_blocks", "b"), SHAPES)
def test_sign_constrained_by_hand(n_blocks, b):
    x, q = problem(n_blocks, b, 5)
    slices = x.numpy().reshape(5, n_blocks, b)
    rotated = np.einsum("nij,tnj->tni", q.numpy(), slices)
    expected = (np.sign(slices) * np.abs(rotated)).reshape(5, -1)
    np.testing.assert_allclose(sign_constrained(x, q), expected, atol=1e-12)
    assert not np.allclose(rotated.reshape(5, -1), expected)


@pytest.mark.parametrize("readout", READOUTS.values(), ids=READOUTS)
def test_the_norm_of_every_slice_is_kept(readout):
    x, q = problem(144, 4, 5)
    before, after = (a.unflatten(-1, (144, 4)).norm(dim=-1) for a in (x, readout(x, q)))
    torch.testing.assert_close(after, before, rtol=1e-13, atol=0)


def test_a_stored_zero_keeps_the_magnitude_and_its_sign():
    q = cayley(skew(torch.tensor([[2.0]]), 2))  # [[0, -1], [1, 0]]
    torch.testing.assert_close(sign_constrained(torch.tensor([0.0, 3.0]), q), torch.tensor([3.0, 0.0]))
    torch.testing.assert_close(sign_constrained(torch.tensor([-0.0, 3.0]), q), torch.tensor([-3.0, 0.0]))


def test_sign_constrained_gradient_against_finite_differences():
    x, q = problem(4, 3, 2)
    assert min(x.abs().min(), block_matmul(x, q).abs().min()) > 1e-3, "too near a kink for finite differences"
    assert torch.autograd.gradcheck(sign_constrained, (x.requires_grad_(), q.requires_grad_()))


def test_sign_constrained_has_no_gradient_at_a_vanishing_output():
    x, q = torch.tensor([1.0, 1.0]), torch.tensor([[[1.0, -1.0], [1.0, 1.0]]]) / 2**0.5
    x.requires_grad_()
    sign_constrained(x, q)[0].backward()
    assert torch.equal(x.grad, torch.zeros(2))


def test_names():
    assert list(READOUTS) == ["exact", "sign-constrained"]
    assert list(READOUTS.values()) == [block_matmul, sign_constrained]


@pytest.mark.parametrize("b", [2, 3, 4])
def test_two_strides_with_one_block_each_are_a_kronecker_product(b):
    """Component g b^2 + j b + i: stride 1 acts on i, stride b on j, both the same in every group g."""
    _, (a, c) = problem(2, b)
    x, _ = problem(5 * b, b, 7)
    dense = torch.from_numpy(np.kron(np.eye(5), np.kron(c, a)))
    found = apply_blocks(x, [(1, a.expand(5 * b, b, b)), (b, c.expand(5 * b, b, b))])
    torch.testing.assert_close(found, x @ dense.T, rtol=0, atol=1e-13)


@pytest.mark.parametrize("read", READOUTS.values(), ids=READOUTS)
@pytest.mark.parametrize(("width", "b", "stride"), [(32, 4, 1), (32, 4, 4), (128, 4, 16), (48, 2, 8), (60, 3, 5)])
def test_blocks_act_on_components_a_stride_apart(width, b, stride, read):
    x, q = problem(width // b, b, 2, 3)
    expected, block = torch.empty_like(x), iter(q)
    for start in range(0, width, b * stride):
        for offset in range(stride):
            components = start + offset + stride * torch.arange(b)
            expected[..., components] = read(x[..., components], next(block)[None])
    torch.testing.assert_close(apply_blocks(x, [(stride, q)], read), expected, rtol=0, atol=1e-13)


def test_transposed_blocks_in_reverse_order_undo_them():
    x, q = problem(3 * 32, 4, 5)
    layers = list(zip((1, 4, 16), q.chunk(3), strict=True))
    x = x[..., :128]
    y = apply_blocks(x, layers)
    assert not torch.allclose(y, apply_blocks(x, layers[::-1]), atol=0.1)
    back = apply_blocks(y, [(stride, blocks.mT) for stride, blocks in layers[::-1]])
    torch.testing.assert_close(back, x, rtol=0, atol=1e-13)


def test_no_layer_changes_nothing():
    x, _ = problem(8, 4, 2)
    assert apply_blocks(x, []) is x
