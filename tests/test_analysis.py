import math

import pytest
import torch

from cua import cayley, skew
from cua.analysis import entangling_power, operator_schmidt, random_blocks, rotation_angles

CNOT = torch.eye(4)[[0, 1, 3, 2]].double()
SWAP = torch.eye(4)[[0, 2, 1, 3]].double()


def blocks(*shape: int, b: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return skew(torch.randn(*shape, b * (b - 1) // 2, generator=generator, dtype=torch.float64), b)


@pytest.mark.parametrize("b", [2, 3, 4, 8])
def test_angles_are_those_of_the_eigenvalues(b):
    k = blocks(20, b=b)
    angles = rotation_angles(k)
    expected = torch.linalg.eigvals(cayley(k)).angle().abs().sort(descending=True).values[:, : b // 2 * 2 : 2]
    assert angles.shape == (20, b // 2)
    torch.testing.assert_close(angles, expected, rtol=0, atol=1e-9)


def test_the_angle_of_a_pair():
    k = skew(torch.tensor([2.0]), 2)
    assert rotation_angles(k).item() == pytest.approx(math.pi / 2), "|K| = 2 is a right angle"


@pytest.mark.parametrize("b", [2, 4, 8])
def test_random_blocks_turn_by_the_same_angles_elsewhere(b):
    k = blocks(50, b=b)
    q = random_blocks(k, torch.Generator().manual_seed(1))
    torch.testing.assert_close(q @ q.mT, torch.eye(b).double().expand_as(q), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        q.diagonal(dim1=-2, dim2=-1).sum(-1), 2 * rotation_angles(k).cos().sum(-1), rtol=0, atol=1e-9
    )
    assert b == 2 or (q - cayley(k)).flatten(1).norm(dim=1).min() > 0.1


def test_random_planes_are_uniform():
    """The mean of O v v^T O^T over many draws is I / b, for a K whose planes are all the same."""
    k = torch.zeros(20_000, 4, 4).double()
    k[:, 0, 1], k[:, 1, 0] = 1.0, -1.0
    away = torch.eye(4) - random_blocks(k, torch.Generator().manual_seed(0))
    mean = (away @ away.mT).mean(0)
    torch.testing.assert_close(mean / mean.trace() * 4, torch.eye(4).double(), rtol=0, atol=0.03)
    assert away.mean(0).triu(1).abs().max() < 0.03, "no sense of rotation is preferred"


@pytest.mark.parametrize(
    ("gate", "schmidt", "power"),
    [
        (torch.eye(4).double(), [1, 0, 0, 0], 0),
        (torch.kron(cayley(blocks(b=2)), cayley(blocks(b=2, seed=1))), [1, 0, 0, 0], 0),
        (CNOT, [0.5**0.5, 0.5**0.5, 0, 0], 2 / 9),
        (SWAP, [0.5, 0.5, 0.5, 0.5], 0),
    ],
    ids=["identity", "product", "CNOT", "swap"],
)
def test_known_gates(gate, schmidt, power):
    torch.testing.assert_close(operator_schmidt(gate), torch.tensor(schmidt, dtype=torch.float64), rtol=0, atol=1e-9)
    assert entangling_power(gate).item() == pytest.approx(power, abs=1e-9)


@pytest.mark.parametrize("d", [2, 3])
def test_entangling_power_is_the_mean_over_product_states(d):
    """By sampling complex product states, uniformly."""
    q = cayley(blocks(b=d * d))
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(40_000, d, generator=generator, dtype=torch.complex128) for _ in range(2))
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    state = (torch.einsum("ni,nj->nij", a, b).flatten(1) @ q.to(a.dtype).mT).unflatten(1, (d, d))
    reduced = state @ state.mH
    entropy = 1 - (reduced @ reduced).diagonal(dim1=-2, dim2=-1).sum(-1).real
    assert entangling_power(q).item() == pytest.approx(entropy.mean().item(), abs=0.004)


def test_in_the_magic_basis_every_rotation_of_four_components_is_a_product():
    """What a block entangles is a matter of how its components are named."""
    h = 0.5**0.5
    magic = torch.tensor([[h, 0, 0, h * 1j], [0, h * 1j, h, 0], [0, h * 1j, -h, 0], [h, 0, 0, -h * 1j]])
    q = cayley(blocks(30)).to(torch.complex128)
    gate = magic.to(q.dtype) @ q @ magic.to(q.dtype).mH
    assert entangling_power(cayley(blocks(30))).min() > 1e-3
    assert entangling_power(gate).abs().max() < 1e-7


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="blocks of 8: two equal subsystems need a square, such as 4 or 16"):
        entangling_power(torch.eye(8))
