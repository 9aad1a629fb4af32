"""How an output leaves a block.

Both readouts take activations ``x`` of shape ``(..., n_blocks * b)`` and orthogonal blocks ``q`` of shape
``(n_blocks, b, b)`` and act on each slice ``x[..., n*b:(n+1)*b]`` on its own:

* ``exact``             y = Q x, what an ideal classical computer evaluates;
* ``sign-constrained``  ``y_i = sign(x_i) |(Q x)_i|``, what a quantum processor returns when it measures the
  magnitudes and the signs are copied from the classically stored input (arXiv:2605.05914).
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# Blocks are gathered into dense tiles this wide: a few large matrix products are several times faster than thousands
# of 4x4 ones, although most of a tile is zeros.  A few tiles at a time keep the memory below that of plain einsum.
TILE_WIDTH, TILES_AT_A_TIME = 32, 4


def block_matmul(x: Tensor, q: Tensor) -> Tensor:
    """Block-diagonal product y = diag(Q_1, ..., Q_n) x, the exact readout.

    Args:
        x: ``(..., n_blocks * b)``.
        q: ``(n_blocks, b, b)``, same dtype and device as ``x``.

    Returns:
        y with the shape of ``x``; ``y[..., n*b + i] = sum_j q[n, i, j] x[..., n*b + j]``.  With ``q`` the identity,
        y equals x exactly (a NaN or infinity spreads over its tile).  Differentiable once in both arguments.
    """
    if torch.compiler.is_compiling():  # the compiler fuses the plain form by itself
        return torch.einsum("...nj,nij->...ni", x.unflatten(-1, q.shape[:2]), q).flatten(-2)
    return _BlockProduct.apply(x, q)


class _BlockProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, q: Tensor) -> Tensor:
        ctx.save_for_backward(x, q)
        return _multiply(x, q)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, q = ctx.saved_tensors
        grad_x = _multiply(grad_y, q.mT) if ctx.needs_input_grad[0] else None
        grad_q = None
        if ctx.needs_input_grad[1]:
            grad_q = torch.empty_like(q)
            for blocks, columns, group in _chunks(x, q):
                width = group * q.shape[-1]
                products = torch.bmm(_tiled(grad_y, columns, width).mT, _tiled(x, columns, width))
                grad_q[blocks] = _tile_diagonal(products, group).flatten(0, 1)
        return grad_x, grad_q


def _multiply(x: Tensor, q: Tensor) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for blocks, columns, group in _chunks(x, q):
        width = group * q.shape[-1]
        tiles = q.new_zeros(len(q[blocks]) // group, width, width)
        _tile_diagonal(tiles, group).copy_(q[blocks].unflatten(0, (-1, group)))
        torch.bmm(_tiled(x, columns, width), tiles.mT, out=_tiled(y, columns, width))
    return y


def _chunks(x: Tensor, q: Tensor) -> Iterator[tuple[slice, slice, int]]:
    """Slices of blocks, their slices of columns, and how many blocks make a tile."""
    n_blocks, b, _ = q.shape
    group = max(g for g in range(1, max(TILE_WIDTH // b, 1) + 1) if n_blocks % g == 0)
    step = group * TILES_AT_A_TIME if x.device.type == "cpu" else n_blocks  # a GPU would rather launch one product
    for start in range(0, n_blocks, step):
        stop = min(start + step, n_blocks)
        yield slice(start, stop), slice(start * b, stop * b), group


def _tiled(x: Tensor, columns: slice, width: int) -> Tensor:
    """View of some columns as ``(n_tiles, tokens, width)``."""
    return x.reshape(-1, x.shape[-1])[:, columns].unflatten(1, (-1, width)).transpose(0, 1)


def _tile_diagonal(tiles: Tensor, group: int) -> Tensor:
    """View of the blocks on the diagonal of each tile, ``(n_tiles, group, b, b)``."""
    split = tiles.unflatten(2, (group, -1)).unflatten(1, (group, -1))  # (n_tiles, group, b, group, b)
    return split.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def sign_constrained(x: Tensor, q: Tensor) -> Tensor:
    """Magnitudes of Q x with the signs of x: ``y_i = sign(x_i) |(Q x)_i|``.

    The sign is that of the stored float, so sign(+0.0) = +1 and no magnitude is lost.  The norm of each
    slice is kept.  The derivative is dy_i/d(Qx)_i = sign(x_i) sign((Qx)_i), zero where (Qx)_i = 0; the
    sign itself is locally constant in x.

    Args, Returns: as :func:`block_matmul`.

    >>> quarter_turn = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]])
    >>> x = torch.tensor([3.0, 4.0])
    >>> block_matmul(x, quarter_turn), sign_constrained(x, quarter_turn)
    (tensor([-4.,  3.]), tensor([4., 3.]))
    """
    return torch.copysign(block_matmul(x, q), x.detach())


def apply_blocks(
    x: Tensor, layers: Iterable[tuple[int, Tensor]], read: Callable[[Tensor, Tensor], Tensor] = block_matmul
) -> Tensor:
    """Apply layers of blocks in turn, each on components of its own stride.

    Args:
        x: ``(..., width)``.
        layers: pairs of a stride and the blocks ``(n_blocks, b, b)`` that act on components so far apart.  Stride 1 is
            the plain block-diagonal product.  Q^T is the transposed blocks in the reversed order.
        read: readout of each layer.

    Returns:
        ``(..., width)``.
    """
    for stride, q in layers:
        b = q.shape[-1]
        slices = x.unflatten(-1, (-1, b, stride)).mT.flatten(-3)  # components one stride apart become neighbours
        x = read(slices, q).unflatten(-1, (-1, stride, b)).mT.flatten(-3)
    return x


READOUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "exact": block_matmul,
    "sign-constrained": sign_constrained,
}
