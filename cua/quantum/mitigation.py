"""Undoing average errors of outcome frequencies with what the calibration says.

Both corrections are linear, f -> C^-1 f with a small response matrix C[observed, true], and both trade bias for
variance: errors of f grow by up to the norm of C^-1.  Frequencies that come out negative are set to zero.  (Libraries
such as mthree solve the first for one set of counts on many qubits; here are millions of sets on one to four.)

* ``readout``: C is the product of the qubits' calibrated assignment matrices.  Exact for independent bit flips.
* ``depolarising``: C = (1 - s) I + (s/2^n) J, J all ones: a fraction s of the shots is uniformly random.  An
  approximation: relaxation is not depolarisation, and s is the average over states.
"""

import numpy as np
from numpy.typing import NDArray

from cua.quantum.noise import DeviceNoise


def readout_response(noise: DeviceNoise, place: tuple[int, ...], bits: list[int] | None = None) -> NDArray[np.float64]:
    """Response matrix ``(2^n, 2^n)`` of measuring the qubits ``place``; the circuit's qubit j lands in ``bits[j]``."""
    response = np.ones((1, 1))
    order = range(len(place)) if bits is None else np.argsort(bits)
    for qubit in order:
        response = np.kron(noise.assignment_matrix(place[qubit]), response)
    return response


def reset_response(noise: DeviceNoise, place: tuple[int, ...], resets: int) -> NDArray[np.float64]:
    """[after, before] of so many resets of every qubit of ``place``, ``(2^n, 2^n)``; the first is the lowest bit."""
    response = np.ones((1, 1))
    for qubit in place:
        response = np.kron(np.linalg.matrix_power(noise.reset_matrix(qubit), resets), response)
    return response


def depolarising_strength(noisy: NDArray[np.float64], ideal: NDArray[np.float64]) -> float:
    """The s that fits p_noisy = (1 - s) p_ideal + s/2^n best, by least squares over circuits.

    Args:
        noisy, ideal: outcome probabilities ``(circuits, 2^n)``, without readout errors.

    Raises:
        ValueError: if every ideal distribution is uniform, so that depolarisation cannot be seen.
    """
    uniform = 1.0 / ideal.shape[-1]
    centred = ideal - uniform
    if not np.abs(centred).max() > 1e-9:
        raise ValueError("every ideal distribution is uniform; depolarisation shows only in others")
    return float(1.0 - (centred * (noisy - uniform)).sum() / (centred**2).sum())


def depolarising_response(strength: float, size: int) -> NDArray[np.float64]:
    """Response matrix (1 - s) I + (s/size) J, ``(size, size)``, J all ones."""
    return (1.0 - strength) * np.eye(size) + strength / size


def inverse_response(response: NDArray[np.float64]) -> NDArray[np.float64]:
    """C^-1 of each response matrix ``(..., size, size)``.

    Raises:
        ValueError: if an eigenvalue is below 1e-3, so that a signal is lost or turned over.
    """
    smallest = np.linalg.eigvals(response).real.min(-1)
    if (smallest < 1e-3).any():
        which = f"matrix {np.argmin(smallest)}, " if smallest.ndim else ""
        raise ValueError(
            f"response {which}smallest eigenvalue {smallest.min():.2g}: at this noise no signal is left to restore"
        )
    return np.linalg.inv(response)


def mitigate(frequencies: NDArray[np.float64], inverse: NDArray[np.float64]) -> NDArray[np.float64]:
    """C^-1 f, negative entries set to zero, scaled to the sum of f.

    Args:
        frequencies: counts or frequencies ``(..., size)``.
        inverse: C^-1, ``(..., size, size)``, see :func:`inverse_response`; broadcast.

    Returns:
        Like ``frequencies``; zeros where nothing was counted.
    """
    total = np.einsum("...i->...", frequencies)[..., None]  # many times faster than sum over so short an axis
    restored = np.clip(np.einsum("...ij,...j->...i", inverse, frequencies), 0.0, None)
    kept = np.einsum("...i->...", restored)[..., None]
    return np.where(kept > 0, restored * total / np.where(kept > 0, kept, 1.0), 0.0)
