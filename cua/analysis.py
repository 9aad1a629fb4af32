"""What trained blocks do: how far they turn, and what they are as two-qubit gates."""

import math

import torch
from torch import Tensor

from cua.cayley import cayley


def rotation_angles(k: Tensor) -> Tensor:
    """Angles by which Q = cayley(K) turns its invariant planes.

    K has the eigenvalues +-i lambda and Q the eigenvalues exp(-+i phi) with phi = 2 arctan(lambda / 2).

    Args:
        k: skew-symmetric ``(..., b, b)``.

    Returns:
        ``(..., b // 2)`` in radians, from 0 up to (never reaching) pi, the largest first.

    >>> rotation_angles(torch.tensor([[0.0, 2.0], [-2.0, 0.0]])).rad2deg().round(decimals=9)
    tensor([90.], dtype=torch.float64)
    """
    singular = torch.linalg.svdvals(k.double())  # each lambda twice, and a zero where b is odd
    return 2 * torch.arctan(singular[..., : singular.shape[-1] // 2 * 2 : 2] / 2)


def random_blocks(k: Tensor, generator: torch.Generator) -> Tensor:
    """Blocks that turn by the same angles as cayley(K), in planes drawn at random: O cayley(K) O^T, O uniform.

    Args:
        k: skew-symmetric ``(..., b, b)``.
        generator: of the draw.

    Returns:
        Orthogonal ``(..., b, b)``, float64.
    """
    q, r = torch.linalg.qr(torch.randn(k.shape, generator=generator, dtype=torch.float64))
    o = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]  # without the signs, not uniform (Mezzadri 2007)
    return o @ cayley(k.double()) @ o.mT


def operator_schmidt(q: Tensor) -> Tensor:
    """Operator Schmidt coefficients of a gate on two subsystems of equal size.

    Q = sum_i s_i A_i (x) B_i with orthonormal A_i and B_i (tr A_i^T A_j = delta_ij); a product gate has one.

    Args:
        q: ``(..., d^2, d^2)``, real; the index of a component is (first, second), the second runs fastest.

    Returns:
        s / d, ``(..., d^2)``, falling; the squares add up to 1.

    Raises:
        ValueError: if the size of the blocks is not a square.
    """
    d = math.isqrt(q.shape[-1])
    if d * d != q.shape[-1]:
        raise ValueError(f"blocks of {q.shape[-1]}: two equal subsystems need a square, such as 4 or 16")
    realigned = q.unflatten(-1, (d, d)).unflatten(-3, (d, d)).transpose(-3, -2).flatten(-2).flatten(-3, -2)
    return torch.linalg.svdvals(realigned) / d


def entangling_power(q: Tensor) -> Tensor:
    """Mean linear entropy that a gate makes out of product states (Zanardi, Zalka & Faoro 2000, quant-ph/0005031).

    e = (d / (d + 1))^2 (E(Q) + E(Q S) - E(S)),        E(Q) = 1 - sum_i (s_i / d)^4,

    with the swap S and the operator Schmidt coefficients s.  0 for products and for the swap; at most 2/9 for two
    qubits, reached by CNOT.

    Args:
        q: ``(..., d^2, d^2)`` orthogonal.

    Returns:
        ``(...)``.

    Raises:
        ValueError: as :func:`operator_schmidt`.

    >>> cnot = torch.eye(4)[[0, 1, 3, 2]]
    >>> entangling_power(torch.stack([torch.eye(4), cnot])).abs().round(decimals=4)
    tensor([0.0000, 0.2222])
    """
    d = math.isqrt(q.shape[-1])
    order = torch.arange(d * d).view(d, d).mT.flatten()

    def entropy(gate: Tensor) -> Tensor:
        return 1 - (operator_schmidt(gate) ** 4).sum(-1)

    swap_entropy = 1 - 1 / d**2
    return (d / (d + 1)) ** 2 * (entropy(q) + entropy(q[..., order]) - swap_entropy)
