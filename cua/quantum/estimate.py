"""From counts to the output of a block.

A slice x of length ``|x|`` goes in, a circuit with y = Q x runs, component k is counted ``counts[k]`` times.  All
functions take counts in the order of *components* (see :mod:`cua.quantum.circuits`), ``(..., b)``, of any number of
blocks.

* ``sign-constrained``: magnitudes from the counts, signs from the input (arXiv:2605.05914).
* ``sign-faithful``: magnitudes and signs from counts in two settings, Q x and T Q x.

**The second setting.**  T multiplies by the quaternion r = cos 45° + sin 45° (1, 1, 1)/sqrt(3) from the left: on the
superdense circuit a quarter turn of qubit 0, and T Q is again one block.  Why not Hadamard gates?  Write y = u + v, and
y' = u - v for the same vector with the signs of some components turned over.  A second setting T confuses the two if
``|T u + T v| = |T u - T v|`` component by component, that is if in every component T u or T v vanishes.  With H (x) H
such pairs exist, (a, -a, b, b) and (-a, a, b, b) among them, and slices near them get rare only like 1/shots, so that
wrong signs cost a constant factor (we measured 4 to 8) at any number of shots.  With r no pair exists but u = 0 or
v = 0.

**Larger blocks.**  The superdense circuit and r are for 4x4.  For b = 2^n there is :func:`sign_faithful_by_qubit`:
after a Hadamard gate on one qubit the frequencies of two components that differ in its bit differ by 2 y_k y_k', so
n + 1 settings tell the sign of every component relative to n others.
"""

import numpy as np
from numpy.typing import NDArray

MANY = 1e15  # shots, that stand for infinitely many
_C, _S = np.sqrt(1 / 2), np.sqrt(1 / 6)  # cos 45°, sin 45°/sqrt(3)
QUARTER_TURN = np.array([[_C, -_S, -_S, -_S], [_S, _C, _S, -_S], [_S, -_S, _C, _S], [_S, _S, -_S, _C]])
"""T, ``(4, 4)`` in SO(4): the second setting measures T Q x."""

_ROUNDS = 4  # in which sign_faithful_by_qubit takes the mean over settings
_SIGNS = np.array([[1, a, b, c] for a in (1, -1) for b in (1, -1) for c in (1, -1)], dtype=float)


def sample(probabilities: NDArray[np.float64], shots: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Multinomial counts of ``shots`` shots, ``(..., b)`` like the probabilities (clipped at 0 and normalised).

    A shot is a uniform number, and an outcome's count is how many of them lie between its edges, the cumulated
    probabilities.  They are counted by halves: the middle one of ``n`` sorted uniform numbers is distributed as
    ``Beta((n + 1)/2, (n + 1)/2)``, and says on which side of an edge half of them lie.  So what is drawn from ``rng``
    does not depend on the probabilities, and another processor, which rounds them otherwise, sees the same shots: once
    in many draws a count moves by one.  (numpy's multinomial may throw other numbers away for other probabilities, and
    then nearly all later counts are others: ``findings/numpy_multinomial_other_shots.sh``.)

    Raises:
        ValueError: for less than one shot or half a one; for probabilities that are not finite, or all zero.
    """
    if shots < 1:
        raise ValueError(f"shots={shots}: at least one")
    if shots != int(shots) or shots > MANY:
        raise ValueError(f"shots={shots}: a whole number, at most {MANY:.0e}")
    p = np.clip(np.asarray(probabilities, dtype=np.float64), 0.0, None)
    if not (np.isfinite(total := _total(p)) & (total > 0)).all():
        raise ValueError("probabilities: each finite, and in every row one above zero")
    edges = np.moveaxis(np.cumsum(p / total, axis=-1)[..., :-1], -1, 0)  # (b - 1, ...)
    below, low, high = np.zeros(edges.shape, dtype=np.int64), np.zeros(edges.shape), np.ones(edges.shape)
    alike = np.ones((max(len(edges) - 1, 0), *edges.shape[1:]), dtype=bool)  # has seen what the edge before it has
    n = int(shots)
    while n > 0:
        half = 1 if n % 2 == 0 else (n + 1) // 2  # of an even number one is counted alone
        place = rng.random(edges.shape) if half == 1 else rng.beta(half, half, edges.shape)
        for edge, same in enumerate(alike, start=1):
            np.copyto(place[edge, ...], place[edge - 1, ...], where=same)
        place = low + (high - low) * place
        under = place < edges
        below += half * under
        if n % 2 == 0:
            n -= 1
            continue
        low, high = np.where(under, place, low), np.where(under, high, place)
        alike &= under[1:] == under[:-1]
        n = half - 1
    return np.moveaxis(np.diff(below, axis=0, prepend=0, append=shots), 0, -1)


def sign_constrained(x: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """``y_i = sign(x_i) |x| sqrt(counts_i / shots)``: the paper's readout.

    Args:
        x: slices ``(..., b)``.
        counts: of y, ``(..., b)``; counts, frequencies or mitigated frequencies.

    Returns:
        Estimates of y, ``(..., b)``; zero slices give zeros.  Without noise, and where shots p >> 1, magnitudes are low
        by ``|x| (1 - p)/(8 shots sqrt(p))`` and spread by ``|x| sqrt((1 - p)/(4 shots))``.
    """
    return np.copysign(_length(x) * _root(counts), x)


def sign_faithful(
    x: NDArray[np.float64],
    counts: NDArray[np.float64],
    counts_turned: NDArray[np.float64],
    mean_overlap: float | NDArray[np.float64] = 0.5,
) -> NDArray[np.float64]:
    """Estimate y = Q x, signs and all, from two settings.

    For each of the 8 sign patterns s, the first setting gives the vector s sqrt(f) with f its frequencies, the second
    T^-1 s' sqrt(f_T) with the signs s' that the first vector predicts; their mean, weighted by shots, is the candidate.
    The candidate under which both sets of counts are most likely is taken; of two almost equally likely ones it is the
    one closer to x, by a von Mises-Fisher prior around x, narrow where ``mean_overlap`` is close to 1.  The global sign
    is taken such that <x, y> > 0.  That is right for every x only if ``|K|_2 < 2``, which is not checked here.

    Args:
        x: slices ``(..., 4)``.
        counts: of Q x, ``(..., 4)``; may be mitigated (not whole, but not negative).
        counts_turned: of T Q x, ``(..., 4)``.
        mean_overlap: of ``x/|x|`` and ``Q x/|x|`` over random x, which is tr(Q)/4; broadcasts against ``x[..., 0]``.

    Returns:
        Estimates of y, ``(..., 4)``, of length ``|x|`` (zeros if nothing was counted).  With many shots the mean
        squared error goes to ``3/(4 shots) |x|^2``, shots being those of both settings: what the quantum Fisher
        information allows an unbiased estimate.
    """
    n, n_t = _total(counts), _total(counts_turned)
    m, m_t, length = _root(counts), _root(counts_turned), _length(x)
    direction = x / np.where(length > 0, length, 1.0)
    concentration = 1.5 / np.maximum(1.0 - np.asarray(mean_overlap), 1e-3)
    best, y = np.full(x.shape[:-1], -np.inf), np.zeros_like(x)
    for signs in _SIGNS:
        first = signs * m
        candidate = n * first + n_t * (np.copysign(m_t, first @ QUARTER_TURN.T) @ QUARTER_TURN)
        candidate /= np.maximum(_length(candidate), np.finfo(float).tiny)
        overlap = np.einsum("...i,...i->...", candidate, direction)
        score = (
            _log_likelihood(counts, n, candidate)
            + _log_likelihood(counts_turned, n_t, candidate @ QUARTER_TURN.T)
            + concentration * np.abs(overlap)
        )
        better = score > best
        best = np.where(better, score, best)
        y = np.where(better[..., None], np.where(overlap < 0, -1.0, 1.0)[..., None] * candidate, y)
    return length * y


def hadamard(b: int, qubit: int) -> NDArray[np.float64]:
    """A Hadamard gate on the qubit that is bit ``qubit`` of a component's number: ``(b, b)``, its own inverse."""
    k, bit = np.arange(b), 1 << qubit
    h = np.diag(np.where(k & bit, -1.0, 1.0))
    h[k, k ^ bit] = 1.0
    return h / np.sqrt(2)


def sign_faithful_by_qubit(x: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Estimate y = Q x of blocks of b = 2^n, signs and all, from n + 1 settings.

    With f the frequencies after a Hadamard gate on qubit q, and k, k' two components that differ in that bit,

        f_k - f_k' = 2 y_k y_k'.

    Signs spread from the largest component along the differences that stand out most from their shot noise.  Then, a
    few times, y becomes the mean of what the settings say, weighted by shots: each its measured magnitudes with the
    signs that the last y predicts, turned back.

    Args:
        x: slices ``(..., b)``.
        counts: ``(n + 1, ..., b)``: of Q x, then of H_q Q x for each qubit q, see :func:`hadamard`.

    Returns:
        Estimates of y, ``(..., b)``, of length ``|x|``, with <x, y> >= 0; that is right for every x only if
        ``|K|_2 < 2``, which is not checked here.  The squared error is near ``(b - 1)/(4 shots) |x|^2``, shots being
        those of all settings, but for the few slices whose large components are joined through small ones alone: for
        4x4 blocks, where that is not so rare, take :func:`sign_faithful`.

    Raises:
        ValueError: if b is no power of two, or counts are not those of n + 1 settings of slices like ``x``.
    """
    b = x.shape[-1]
    n = b.bit_length() - 1
    if b != 1 << n or counts.shape != (n + 1, *x.shape):
        raise ValueError(
            f"counts {counts.shape}, slices {x.shape}: expected b a power of two, and (1 + log2(b), ..., b) counts"
        )
    k, turns = np.arange(b), [hadamard(b, q) for q in range(n)]
    shots, roots = _total(counts), _root(counts)
    difference, evidence = np.zeros((*x.shape, n)), np.zeros((*x.shape, n))  # along edges of the hypercube
    for q in range(n):
        f, bit = roots[q + 1] ** 2, 1 << q
        low, high = f[..., k & ~bit], f[..., k | bit]
        difference[..., q] = low - high
        evidence[..., q] = abs(low - high) * roots[0] * roots[0][..., k ^ bit] / np.maximum(low + high, 1e-300)
    sign = np.zeros(x.shape)
    np.put_along_axis(sign, roots[0].argmax(-1)[..., None], 1.0, -1)
    for _ in range(b - 1):  # a maximum spanning tree, from its root
        theirs = np.stack([sign[..., k ^ (1 << q)] for q in range(n)], -1)
        edges = np.where((theirs != 0) & (sign == 0)[..., None], evidence, -1.0).reshape(*x.shape[:-1], -1)
        best = edges.argmax(-1)[..., None]
        known = (theirs * np.where(difference < 0, -1.0, 1.0)).reshape(edges.shape)
        np.put_along_axis(sign, best // n, np.take_along_axis(known, best, -1), -1)
    y = sign * roots[0]
    for _ in range(_ROUNDS):
        total = shots[0] * np.copysign(roots[0], y)
        for turn, m, weight in zip(turns, roots[1:], shots[1:], strict=True):
            total += weight * (np.copysign(m, y @ turn) @ turn)
        y = total / np.maximum(_length(total), np.finfo(float).tiny)
    overlap = (x * y).sum(-1, keepdims=True)
    return _length(x) * np.where(overlap < 0, -1.0, 1.0) * y


def _log_likelihood(
    counts: NDArray[np.float64], shots: NDArray[np.float64], amplitudes: NDArray[np.float64]
) -> NDArray[np.float64]:
    # A predicted zero that was counted is unlikely, not impossible: amplitudes are uncertain by 1/(2 sqrt(shots)).
    return np.einsum("...i,...i->...", counts, np.log(amplitudes**2 + 0.25 / np.maximum(shots, 1.0)))


def _total(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over components, kept as an axis.  numpy's sum is many times slower over so short an axis."""
    return np.einsum("...i->...", values)[..., None]


def _length(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.einsum("...i,...i->...", x, x))[..., None]  # squares of single-precision numbers always fit


def _root(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """sqrt of the frequencies; zeros if nothing was counted."""
    total = _total(counts)
    return np.sqrt(np.clip(counts, 0.0, None) / np.where(total > 0, total, 1.0))
