"""How an output leaves a block.

Both readouts take activations ``x`` of shape ``(..., n_blocks * b)`` and orthogonal blocks ``q`` of shape
``(n_blocks, b, b)`` and act on each slice ``x[..., n*b:(n+1)*b]`` on its own:

* ``exact``             y = Q x, what an ideal classical computer evaluates;
* ``sign-constrained``  y_i = sign(x_i) |(Q x)_i|, what a quantum processor returns when it measures the
  magnitudes and the signs are copied from the classically stored input (arXiv:2605.05914).
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Blocks are gathered into dense tiles up to this wide: a few large matrix products are several times faster
# than thousands of 4x4 ones, although most of each tile is zeros (measured in tests/bench_adapter.py).
TILE = 64


def block_matmul(x: Tensor, q: Tensor) -> Tensor:
    """Block-diagonal product y = diag(Q_1, ..., Q_n) x, the exact readout.

    Args:
        x: ``(..., n_blocks * b)``.
        q: ``(n_blocks, b, b)``, same dtype and device as ``x``.

    Returns:
        y with the shape of ``x``; ``y[..., n*b + i] = sum_j q[n, i, j] x[..., n*b + j]``.  With
        ``q`` the identity, y equals x exactly.
    """
    n_blocks, b, _ = q.shape
    group = max(g for g in range(1, max(TILE // b, 1) + 1) if n_blocks % g == 0)
    width, n_tiles = group * b, n_blocks // group
    tiles = q.new_zeros(n_tiles, group, b, group, b)
    diagonal = torch.arange(group, device=q.device)
    tiles[:, diagonal, :, diagonal, :] = q.reshape(n_tiles, group, b, b).transpose(0, 1)
    slices = x.reshape(-1, n_tiles, width).transpose(0, 1)  # (n_tiles, tokens, width)
    y = torch.bmm(slices, tiles.reshape(n_tiles, width, width).mT)
    return y.transpose(0, 1).reshape(x.shape)


def sign_constrained(x: Tensor, q: Tensor) -> Tensor:
    """Magnitudes of Q x with the signs of x: y_i = sign(x_i) |(Q x)_i|.

    The sign is that of the stored float, so sign(+0.0) = +1 and no magnitude is lost.  The norm of each
    slice is kept.  The derivative is dy_i/d(Qx)_i = sign(x_i) sign((Qx)_i), zero where (Qx)_i = 0; the
    sign itself is locally constant in x.

    Args, Returns: as :func:`block_matmul`.
    """
    return torch.copysign(block_matmul(x, q), x.detach())


READOUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "exact": block_matmul,
    "sign-constrained": sign_constrained,
}
