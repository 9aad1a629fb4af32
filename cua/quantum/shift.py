"""Gradients from circuits: the parameter-shift rule for 4x4 blocks.

A small rotation in front of a block, Q -> Q exp(phi J / 2), is for each of three J the same circuit with other angles.
The J are the multiplications by the quaternion units i, j, k from the left: J^2 = -I, so that

    exp(phi J / 2) = cos(phi/2) I + sin(phi/2) J,

and every frequency ``p_k = (Q exp(phi J / 2) x)_k^2 / |x|^2`` is a constant plus a multiple of cos(phi) plus one of
sin(phi).  For such functions two shifts of a quarter turn give the derivative without error (Mitarai et al.,
arXiv:1803.00745; Schuld et al., arXiv:1811.11184):

    dp_k/dphi = (p_k(pi/2) - p_k(-pi/2)) / 2.

The three J turn x into every direction that keeps its length, and along x itself y is proportional to it.  So six
settings give dL/dx, and with x known dL/dQ follows: along SO(4) it is Q times the skew part of sum_t dL/dx_t x_t^T.  No
more settings than six, however many parameters a block has and however many blocks there are, for each block's own
outcomes are read.

Nothing here needs a quantum computer: with Q and x known, dL/dQ = dL/dy x^T is one outer product.  It is what training
*on* a device takes if nothing but counts is to be trusted.
"""

import numpy as np
from numpy.typing import NDArray

from cua.quantum.circuits import quaternion_product

GENERATORS = np.stack([quaternion_product(unit, np.eye(4)).T for unit in np.eye(4)[1:]])
"""J, ``(3, 4, 4)``: multiplications by i, j, k from the left; skew-symmetric."""


def shifted(q: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The six settings: Q exp(+pi/4 J) for each J, then Q exp(-pi/4 J).

    Args:
        q: ``(n_blocks, 4, 4)`` in SO(4).

    Returns:
        Six arrays like ``q``.
    """
    return [q @ (np.eye(4) + sign * generator) / np.sqrt(2) for sign in (1, -1) for generator in GENERATORS]


def parameter_shift(
    x: NDArray[np.float64],
    q: NDArray[np.float64],
    y: NDArray[np.float64],
    grad_y: NDArray[np.float64],
    counts: list[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gradients of a loss L with respect to slices and blocks, from counts alone.

    With ``y_k = s_k |x| sqrt(p_k)`` and signs s that do not change,
    ``dL/dphi = sum_k dL/dy_k |x|^2 / (2 y_k) dp_k/dphi``.

    Args:
        x: slices ``(tokens, n_blocks, 4)``.
        q: blocks ``(n_blocks, 4, 4)``.
        y: what was read from the blocks, signs and all, ``(tokens, n_blocks, 4)``.
        grad_y: dL/dy, of that shape.
        counts: of the six settings of :func:`shifted`, ``(tokens, n_blocks, 4)`` each, from N shots.

    Returns:
        dL/dx, ``(tokens, n_blocks, 4)``, and dL/dQ, ``(n_blocks, 4, 4)``: of all matrices with the right derivative
        along SO(4) the one that is tangent to it, so that the chain rule may go on to K from there.

        The variance of one dL/dphi is at most ``sum_k (dL/dy_k |x|)^2 (1 + z_k^2 / y_k^2) / (16 N)`` with z = Q J x:
        without bounds where a component of y is small.  So 1 / y_k becomes ``y_k / (y_k^2 + |x|^2 / (4 N))``, which
        differs where y_k is within its shot noise of zero, and less and less as N grows.
    """
    stacked = np.stack(counts)
    shots = stacked.sum(-1, keepdims=True)
    frequencies = stacked / np.maximum(shots, 1)
    squares = np.einsum("tni,tni->tn", x, x)
    square = squares[..., None]
    uncertain = y**2 + square / (4 * np.maximum(shots.mean(0), 1))
    weight = grad_y * square * y / (2 * np.where(square > 0, uncertain, 1.0))
    half = len(GENERATORS)
    slopes = np.einsum("tnk,jtnk->jtn", weight, (frequencies[:half] - frequencies[half:]) / 2)  # dL/dphi of each token
    # dx = phi J x / 2 in three directions, and along x itself y is proportional to it.
    directions = np.einsum("jab,tnb->jtna", GENERATORS, x)
    along = np.einsum("tni,tni->tn", grad_y, y)
    grad_x = 2 * np.einsum("jtn,jtna->tna", slopes, directions) + along[..., None] * x
    grad_x /= np.where(squares > 0, squares, 1.0)[..., None]
    outer = np.einsum("tna,tnb->nab", grad_x, x)
    return grad_x, q @ (outer - outer.mT) / 2
