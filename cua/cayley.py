"""The Cayley transform: one formula, its inverse, and the parameters of a block.

A block of size ``b`` is a real orthogonal matrix written through a skew-symmetric one,

    Q = (I - K/2) (I + K/2)^-1,        K = -K^T,

so that ``b(b-1)/2`` unconstrained numbers, the entries above the diagonal of K read row by row,
always give an exactly orthogonal Q, and zeros give the identity.  Every function is batched: leading
dimensions, written ``...``, are blocks and are treated independently.

Source: A. Cayley, "Sur quelques propriétés des déterminants gauches", J. reine angew. Math. 32 (1846);
the factor 1/2 is the convention of Cayley unitary adapters (arXiv:2605.05914).
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def n_parameters(block_size: int) -> int:
    """Free parameters of one block, b(b-1)/2: the dimension of the group SO(b).

    >>> n_parameters(4)
    6
    """
    return block_size * (block_size - 1) // 2


def skew(theta: Tensor, block_size: int) -> Tensor:
    """Skew-symmetric matrices from their entries above the diagonal.

    Args:
        theta: ``(..., b(b-1)/2)``, the entries K[0,1], K[0,2], ..., K[1,2], ... in row-major order.
        block_size: b, the components of a block.

    Returns:
        K of shape ``(..., b, b)`` with ``K[i, j] = theta[k] = -K[j, i]`` for i < j, dtype of ``theta``.

    Raises:
        ValueError: if the last dimension of ``theta`` is not b(b-1)/2.

    >>> skew(torch.tensor([1.0, 2.0, 3.0]), 3)
    tensor([[ 0.,  1.,  2.],
            [-1.,  0.,  3.],
            [-2., -3.,  0.]])
    """
    expected = n_parameters(block_size)
    if theta.shape[-1] != expected:
        raise ValueError(f"a block of size {block_size} has {expected} parameters, but theta ends in {theta.shape[-1]}")
    rows, columns = torch.triu_indices(block_size, block_size, 1, device=theta.device)
    upper = theta.new_zeros(*theta.shape[:-1], block_size, block_size)
    upper[..., rows, columns] = theta
    return upper - upper.mT


def unskew(k: Tensor) -> Tensor:
    """Entries above the diagonal, row by row: the inverse of :func:`skew`.

    Args:
        k: skew-symmetric ``(..., b, b)``.

    Returns:
        theta of shape ``(..., b(b-1)/2)``.
    """
    block_size = k.shape[-1]
    rows, columns = torch.triu_indices(block_size, block_size, 1, device=k.device)
    return k[..., rows, columns]


def _wide(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks in float64, or in float32 where the device has no float64, and an identity like them."""
    wide = blocks if blocks.device.type == "mps" else blocks.double()
    return wide, torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device)


def cayley(k: Tensor) -> Tensor:
    """Cayley transform Q = (I - K/2)(I + K/2)^-1 of skew-symmetric matrices.

    The linear system is solved, never expanded in a series, and always in float64 (float32 where the
    device has no float64), so the result is orthogonal to the rounding of the *returned* dtype even
    for large K: ``|Q^T Q - I| <= 1e-6`` in float32 and 1e-12 in float64 up to ``|K|`` = 1e3.  K has the
    eigenvalues +-i*lambda, so I + K/2 has 1 +- i*lambda/2 and is never singular.  Q has determinant
    +1 and never the eigenvalue -1, which is reached only as ``|K|`` grows without bound.

    Args:
        k: skew-symmetric ``(..., b, b)``, floating point.

    Returns:
        Q, same shape and dtype; differentiable once in ``k``.

    An entry t turns its plane by 2 arctan(t/2), so 2 is a quarter turn:

    >>> (cayley(skew(torch.tensor([2.0]), 2)) @ torch.tensor([1.0, 0.0])).abs().round(decimals=6)  # a quarter turn
    tensor([0., 1.])
    """
    return _Cayley.apply(k)


class _Cayley(torch.autograd.Function):
    """With R = (I + K/2)^-1 the transform is Q = 2R - I and its differential dQ = -R dK R: one solve serves both."""

    @staticmethod
    def forward(ctx: FunctionCtx, k: Tensor) -> Tensor:
        wide, identity = _wide(k)
        r = torch.linalg.solve(identity + wide / 2, identity.expand_as(wide))
        ctx.save_for_backward(r.to(k.dtype))
        return (2 * r - identity).to(k.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_q: Tensor) -> Tensor:
        (r,) = ctx.saved_tensors
        return -(r.mT @ grad_q @ r.mT)


def inverse_cayley(q: Tensor) -> Tensor:
    """Inverse transform K = 2 (I - Q)(I + Q)^-1.

    Args:
        q: orthogonal ``(..., b, b)`` with determinant +1 and without the eigenvalue -1.

    Returns:
        K, same shape and dtype, exactly skew-symmetric.

    Raises:
        ValueError: if some Q is not orthogonal (to 1e-4 in float32, 1e-10 in float64), or has the
            eigenvalue -1 (a reflection or a half turn), which no finite K reaches.
    """
    wide, identity = _wide(q)
    error = (wide.mT @ wide - identity).abs().amax().item() if q.numel() else 0.0
    if not error <= (1e-10 if q.dtype == torch.float64 else 1e-4):
        raise ValueError(f"not orthogonal: the largest entry of |Q^T Q - I| is {error:.1e}")
    # det(I + Q) is 0 exactly when -1 is an eigenvalue; the smallest singular value says how close.
    distance = torch.linalg.svdvals(identity + wide).amin().item() if q.numel() else 1.0
    if distance < 1e-7:
        if (torch.linalg.det(wide) < 0).any():
            raise ValueError("Q is a reflection (determinant -1), the Cayley transform of no K")
        raise ValueError("Q has the eigenvalue -1 (a half turn), reached only as K grows without bound")
    k = 2 * torch.linalg.solve(identity + wide, identity - wide)
    return ((k - k.mT) / 2).to(q.dtype)
