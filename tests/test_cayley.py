import numpy as np
import pytest
import torch
from scipy.stats import special_ortho_group
from torch import Tensor

from cua import cayley, inverse_cayley, n_parameters, skew, unskew

SIZES = (2, 3, 4, 8, 16, 64)
NORMS = (1e-3, 1.0, 10.0, 1e3)
BOUNDS = {torch.float32: 1e-6, torch.float64: 1e-12}


def random_skew(*batch: int, b: int, norm: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    k = skew(torch.randn(*batch, n_parameters(b), generator=torch.Generator().manual_seed(b)).double(), b)
    return (norm * k / torch.linalg.matrix_norm(k, 2)[..., None, None]).to(dtype)


def orthogonality_error(q: Tensor) -> float:
    q = q.detach().double()
    return (q.mT @ q - torch.eye(q.shape[-1])).abs().max().item()


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("b", SIZES)
def test_blocks_are_orthogonal_with_determinant_one(b, norm, dtype):
    q = cayley(random_skew(20, b=b, norm=norm, dtype=dtype))
    assert q.dtype == dtype
    assert orthogonality_error(q) <= BOUNDS[dtype]
    torch.testing.assert_close(torch.linalg.det(q.double()), torch.ones(20).double(), rtol=0, atol=b * BOUNDS[dtype])


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("b", SIZES)
def test_blocks_stay_orthogonal_while_adam_moves_them(b, dtype):
    theta = torch.zeros(1, n_parameters(b), dtype=dtype, requires_grad=True)
    target = torch.randn(1, b, b, generator=torch.Generator().manual_seed(0)).to(dtype)
    optimizer = torch.optim.Adam([theta], lr=0.1)
    losses = []
    for _ in range(100):
        loss = (cayley(skew(theta, b)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert orthogonality_error(cayley(skew(theta, b))) <= BOUNDS[dtype]


@pytest.mark.parametrize("t", [-300.0, -2.0, -0.1, 0.0, 0.1, 1.0, 2.0, 300.0])
def test_two_by_two_closed_form(t):
    a = t / 2
    expected = np.array([[1 - a**2, -2 * a], [2 * a, 1 - a**2]]) / (1 + a**2)
    np.testing.assert_allclose(cayley(torch.tensor([[0.0, t], [-t, 0.0]]).double()), expected, atol=1e-15)


@pytest.mark.parametrize("b", SIZES)
def test_agrees_with_the_formula_in_numpy(b):
    k = random_skew(b=b, norm=3.0)
    half, identity = k.numpy() / 2, np.eye(b)
    np.testing.assert_allclose(cayley(k), (identity - half) @ np.linalg.inv(identity + half), atol=1e-13)


def test_zero_is_exactly_the_identity():
    assert torch.equal(cayley(torch.zeros(3, 4, 4)), torch.eye(4).expand(3, 4, 4))


@pytest.mark.parametrize("b", SIZES)
def test_minus_k_is_the_transpose(b):
    k = random_skew(6, b=b, norm=2.0)
    torch.testing.assert_close(cayley(-k), cayley(k).mT, rtol=0, atol=1e-14)


def test_a_batch_is_its_blocks():
    k = random_skew(2, 3, 5, b=4)
    q = cayley(k)
    assert q.shape == (2, 3, 5, 4, 4)
    for index in np.ndindex(2, 3, 5):
        torch.testing.assert_close(q[index], cayley(k[index]), rtol=0, atol=1e-15)


@pytest.mark.parametrize("b", SIZES)
def test_as_many_blocks_as_rows(b):
    """torch.linalg.solve reads a (b, b) right-hand side as b vectors when the batch has b matrices."""
    k = random_skew(b, b=b)
    q = cayley(k)
    assert q.shape == (b, b, b)
    torch.testing.assert_close(q, torch.stack([cayley(block) for block in k]), rtol=0, atol=1e-14)
    torch.testing.assert_close(inverse_cayley(q), k, rtol=0, atol=1e-13)


def test_an_empty_batch_stays_empty():
    theta = torch.zeros(0, 6, requires_grad=True)
    q = cayley(skew(theta, 4))
    q.sum().backward()
    assert q.shape == (0, 4, 4)
    assert theta.grad.shape == (0, 6)
    assert inverse_cayley(q.detach()).shape == (0, 4, 4)


@pytest.mark.parametrize("b", [2, 3, 4, 8])
def test_gradient_against_finite_differences(b):
    theta = unskew(random_skew(1, b=b, norm=2.0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda theta: cayley(skew(theta, b)), theta)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("b", SIZES)
def test_gradient_against_autograd_through_a_solve(b, norm):
    k, plain_k = (random_skew(4, b=b, norm=norm).requires_grad_() for _ in range(2))
    identity = torch.eye(b).double()
    plain = torch.linalg.solve(identity + plain_k / 2, identity - plain_k / 2, left=False)
    upstream = torch.randn(4, b, b, generator=torch.Generator().manual_seed(0)).double()
    cayley(k).backward(upstream)
    plain.backward(upstream)
    torch.testing.assert_close(k.grad, plain_k.grad, rtol=1e-9, atol=1e-10)


def test_gradient_in_float32_agrees_with_float64():
    gradients = {}
    for dtype in BOUNDS:
        k = random_skew(50, b=4, norm=2.0, dtype=dtype).requires_grad_()
        cayley(k).square().mul(torch.arange(16).view(4, 4)).sum().backward()
        gradients[dtype] = k.grad.double()
    torch.testing.assert_close(gradients[torch.float32], gradients[torch.float64], rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("b", SIZES)
def test_inverse_gives_k_back(b, norm, dtype):
    """Q has eigenvalues as close to -1 as 4 / norm, so rounding Q to its dtype costs about norm^2 of accuracy."""
    k = random_skew(7, b=b, norm=norm, dtype=dtype)
    back = inverse_cayley(cayley(k))
    assert back.dtype == dtype
    assert torch.equal(back, -back.mT)
    assert (back - k).abs().max() <= torch.finfo(dtype).eps * (8 + norm**2)


def test_the_inverse_of_float32_is_computed_in_float64():
    q = cayley(random_skew(50, b=4, norm=100.0, dtype=torch.float32))
    wide, identity = q.double().numpy(), np.eye(4)
    k = 2 * np.linalg.solve(identity + wide, identity - wide)
    assert torch.equal(inverse_cayley(q), torch.from_numpy((k - k.swapaxes(1, 2)) / 2).float())


def test_blocks_stay_on_their_device():
    theta = torch.zeros(3, 6, device="meta")
    assert cayley(skew(theta, 4)).device.type == unskew(skew(theta, 4)).device.type == "meta"


@pytest.mark.parametrize("b", SIZES)
def test_inverse_of_random_rotations_gives_them_back(b):
    q = torch.from_numpy(np.stack([special_ortho_group.rvs(b, random_state=seed) for seed in range(5)]))
    torch.testing.assert_close(cayley(inverse_cayley(q)), q, rtol=0, atol=1e-11)
    q = q.float()
    torch.testing.assert_close(cayley(inverse_cayley(q)), q, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "q",
    [
        2 * torch.eye(3),
        torch.eye(3) + 1e-3,
        torch.full((3, 3), torch.nan),
        torch.eye(3).double() + 1e-8,
        torch.stack([torch.eye(3), torch.ones(3, 3)]),
    ],
    ids=["scaled", "perturbed", "nan", "perturbed float64", "one of a batch"],
)
def test_inverse_refuses_what_is_not_orthogonal(q):
    with pytest.raises(ValueError, match="not orthogonal"):
        inverse_cayley(q)


def _half_turns() -> Tensor:
    """About random axes; by rounding, some determinants are a little below one."""
    axes = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double(), dim=1)
    return 2 * axes[:, :, None] * axes[:, None, :] - torch.eye(3)


HALF_TURN = r"^Q has the eigenvalue -1 \(a half turn\), reached only as K grows without bound$"


@pytest.mark.parametrize(
    ("q", "message"),
    [
        (
            torch.diag(torch.tensor([1.0, -1.0])),
            r"^Q is a reflection \(determinant -1\), the Cayley transform of no K$",
        ),
        (-torch.eye(2), HALF_TURN),
        (torch.diag(torch.tensor([1.0, -1.0, -1.0])).double(), HALF_TURN),
        (_half_turns(), HALF_TURN),
    ],
    ids=["reflection", "half turn of the plane", "half turn about an axis", "about many axes"],
)
def test_inverse_refuses_the_eigenvalue_minus_one(q, message):
    with pytest.raises(ValueError, match=message):
        inverse_cayley(q)


def test_skew_reads_the_upper_triangle_row_by_row():
    expected = torch.tensor(
        [[0.0, 1.0, 2.0, 3.0], [-1.0, 0.0, 4.0, 5.0], [-2.0, -4.0, 0.0, 6.0], [-3.0, -5.0, -6.0, 0.0]]
    )
    assert torch.equal(skew(torch.arange(1.0, 7.0), 4), expected)


@pytest.mark.parametrize("batch", [(), (3,), (2, 0), (2, 3, 5)])
@pytest.mark.parametrize("b", SIZES)
def test_unskew_inverts_skew(b, batch):
    theta = torch.randn(*batch, b * (b - 1) // 2)
    k = skew(theta, b)
    assert k.shape == (*batch, b, b)
    assert torch.equal(k, -k.mT)
    assert torch.equal(unskew(k), theta)


@pytest.mark.parametrize(("b", "expected"), [(2, 1), (3, 3), (4, 6), (8, 28), (64, 2016)])
def test_parameter_count(b, expected):
    assert n_parameters(b) == expected


@pytest.mark.parametrize("count", [0, 1, 5, 7, 16])
def test_skew_refuses_another_number_of_parameters(count):
    with pytest.raises(ValueError, match=f"^a block of size 4 has 6 parameters, but theta ends in {count}$"):
        skew(torch.zeros(3, 2, count), 4)


def test_indices_are_made_where_the_parameters_are():
    theta = torch.tensor([[1.0, 2.0, 3.0]])
    with torch.device("meta"):
        k = skew(theta, 3)
        assert torch.equal(unskew(k), theta)
