"""Circuits for one block: prepare a slice x, apply Q, measure.

Conventions, used throughout ``cua.quantum`` and pinned by tests:

* *Component* i of a slice is ``(Q x)_i``.  *Outcome* is Qiskit's integer for a bitstring, qubit 0 the lowest bit.
* :func:`textbook_circuit`: component i is outcome i.
* :func:`superdense_template`: component i is outcome ``SUPERDENSE_OUTCOMES[i]``, a Gray code.

**The superdense circuit.**  Write x in R^4 as the matrix U_x = x_0 I + i(x_1 Z + x_2 X + x_3 Y), a quaternion.
Every Q in SO(4) is x -> a x b with two unit quaternions, U_{Qx} = A U_x B.  One qubit of a Bell pair is given A U_x,
the other one B (transposed), then both are measured in the Bell basis: outcome k has probability ``(Qx)_k^2 / |x|^2``.
This is superdense coding with a superposition of messages.  It takes two CZ: one makes the pair, one measures it.

On IBM's basis {RZ, SX, CZ} each one-qubit gate is RZ SX RZ SX RZ.  SX on ``|0>`` and CZ make a maximally entangled
pair, CZ and SX before the measurement undo one; both differ from the textbook Bell pair by fixed one-qubit rotations,
which :func:`superdense_angles` absorbs, and RZs commute through CZ to where they do nothing.  Left are six angles.
"""

import numpy as np
from numpy.typing import NDArray
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, transpile
from qiskit.circuit import ParameterVector
from qiskit.circuit.library import StatePreparation, UnitaryGate
from qiskit.transpiler import CouplingMap

SUPERDENSE_OUTCOMES = (0, 1, 3, 2)
"""``SUPERDENSE_OUTCOMES[i]``: the outcome whose probability is that of component i."""

# Quaternions (q0, q1, q2, q3) stand for q0 I + i(q1 Z + q2 X + q3 Y).  The product of two matrices of this form:
#   (p q)_0 = p0 q0 - p.q,   (p q)_vec = p0 q_vec + q0 p_vec - p x q   in the right-handed order (X, Y, Z).
_SQRT_HALF = np.sqrt(0.5)
_RX_MINUS = np.array([_SQRT_HALF, 0.0, _SQRT_HALF, 0.0])  # exp(+i pi/4 X) = RX(-pi/2)


def textbook_circuit(x: NDArray[np.float64], q: NDArray[np.float64]) -> QuantumCircuit:
    """State preparation of x, then Q as one unitary gate, then measurement of every qubit.

    Args:
        x: ``(b,)`` with b a power of two, not zero; its length is divided out.
        q: ``(b, b)`` orthogonal.

    Returns:
        A circuit on log2(b) qubits, not yet transpiled.  Outcome i has probability ``(Q x)_i^2 / |x|^2``.

    Raises:
        ValueError: if b is not a power of two, the shapes do not fit, or x is zero.
    """
    x, q = np.asarray(x, dtype=float), np.asarray(q, dtype=float)
    n_qubits = _n_qubits(len(x))
    if q.shape != (len(x), len(x)):
        raise ValueError(f"x has {len(x)} components and Q the shape {q.shape}; they need to agree")
    scale = np.abs(x).max()
    if not scale > 0 or not np.isfinite(scale):
        raise ValueError("a zero or infinite slice has no quantum state; leave zero slices out, their output is zero")
    circuit = QuantumCircuit(n_qubits)
    scaled = x / scale  # neither tiny nor huge entries may lose digits in the norm
    circuit.append(StatePreparation(scaled / np.linalg.norm(scaled)), range(n_qubits))
    circuit.append(UnitaryGate(q), range(n_qubits))
    circuit.measure_all()
    return circuit


def preparation_template(n_qubits: int) -> QuantumCircuit:
    """Real states on n qubits from 2^n - 1 free RY angles, see :func:`preparation_angles`.

    Two qubits are prepared by their Schmidt decomposition (one CX); every further qubit by an RY that all the others
    control, written as 2^k RY and CX in turn along a Gray code (Möttönen et al., quant-ph/0407010).
    """
    circuit = QuantumCircuit(n_qubits)
    angles = ParameterVector("x", 2**n_qubits - 1)
    if n_qubits == 1:
        circuit.ry(angles[0], 0)
        return circuit
    top = n_qubits - 1  # the two highest qubits come first
    circuit.ry(angles[0], top - 1)
    circuit.cx(top - 1, top)
    circuit.ry(angles[1], top - 1)
    circuit.ry(angles[2], top)
    used = 3
    for target in range(top - 2, -1, -1):
        n_controls = top - target
        for step in range(2**n_controls):
            circuit.ry(angles[used + step], target)
            changing = _gray(step) ^ _gray((step + 1) % 2**n_controls)
            circuit.cx(target + changing.bit_length(), target)
        used += 2**n_controls
    return circuit


def preparation_angles(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles of :func:`preparation_template` for many slices at once.

    Args:
        x: ``(..., 2^n)``; component i is outcome i.  A zero slice gets the angles of the state ``|0...0>``.

    Returns:
        ``(..., 2^n - 1)`` in radians.

    Raises:
        ValueError: if the last dimension is not a power of two, or x is not finite.
    """
    x = _scaled(x)
    n_qubits = _n_qubits(x.shape[-1])
    if n_qubits == 1:
        return 2 * np.arctan2(x[..., 1:], x[..., :1])
    blocks = []
    for controls in range(n_qubits - 1, 1, -1):  # the lowest qubit splits each pair of neighbours, then drops out
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        turns = 2 * np.arctan2(pairs[..., 1], pairs[..., 0])
        codes = np.arange(2**controls)
        walsh = (-1.0) ** np.bitwise_count(codes[:, None] & _gray(codes)[None, :])
        blocks.insert(0, turns @ walsh / 2**controls)
        x = np.linalg.norm(pairs, axis=-1)
    # X[q1, q0] = R(f) diag(cos g, sin g) R(t) with rotations R, in closed form.
    (a, b), (c, d) = np.moveaxis(x.reshape(*x.shape[:-1], 2, 2), (-2, -1), (0, 1))
    plus, minus = np.hypot(a + d, c - b), np.hypot(a - d, c + b)
    first, second = np.arctan2(c + b, a - d), np.arctan2(c - b, a + d)
    schmidt = 2 * np.arctan2(plus - minus, plus + minus)
    return np.concatenate([np.stack([schmidt, first - second, first + second], axis=-1), *blocks], axis=-1)


def textbook_template(q: NDArray[np.float64], seed: int = 0) -> QuantumCircuit:
    """State preparation with free angles and Q as a unitary gate, transpiled for a line of Heron qubits.

    Args:
        q: ``(b, b)`` orthogonal, b a power of two.
        seed: of the transpiler (Qiskit's, optimisation level 3).

    Returns:
        Gates rz, sx, x, cz on qubits 0..n-1 of a line, with the angles of :func:`preparation_angles` free.  Qiskit's
        synthesis rounds gates that are nearly simpler ones, which moves probabilities by up to some 1e-5.
    """
    n_qubits = _n_qubits(len(q))
    circuit = preparation_template(n_qubits)
    circuit.append(UnitaryGate(q), range(n_qubits))
    circuit.measure_all()
    return transpile(
        circuit,
        basis_gates=["rz", "sx", "x", "cz"],
        coupling_map=CouplingMap.from_line(n_qubits) if n_qubits > 1 else None,
        optimization_level=3,
        seed_transpiler=seed,
    )


def _scaled(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slices with a largest entry of 1, so that squares neither overflow nor vanish; zero slices become (1, 0, ...)."""
    x = np.asarray(x, dtype=float)
    if not np.isfinite(x).all():
        raise ValueError("a slice holds NaN or infinity; no circuit prepares it")
    scale = np.abs(x).max(-1, keepdims=True)
    return np.where(scale > 0, x / np.where(scale > 0, scale, 1.0), np.eye(x.shape[-1])[0])


def _gray(code):
    return code ^ (code >> 1)


def _n_qubits(b: int) -> int:
    if b < 2 or b & (b - 1):
        raise ValueError(f"block size {b}: amplitude encoding needs a power of two")
    return b.bit_length() - 1


def superdense_template() -> QuantumCircuit:
    """The circuit of every 4x4 block and slice, with six free angles ``angle[0..5]`` in the gates of a Heron processor.

    Qubit 0 carries ``angle[0..2]``, qubit 1 ``angle[3..5]``.  8 SX, 6 RZ, 2 CZ, depth 10 with the measurement.
    """
    circuit = QuantumCircuit(QuantumRegister(2, "q"), ClassicalRegister(2, "meas"), name="superdense")
    angles = ParameterVector("angle", 6)
    circuit.sx([0, 1])
    circuit.cz(0, 1)
    for qubit in (0, 1):
        first, second, third = angles[3 * qubit : 3 * qubit + 3]
        circuit.rz(first, qubit)
        circuit.sx(qubit)
        circuit.rz(second, qubit)
        circuit.sx(qubit)
        circuit.rz(third, qubit)
    circuit.cz(0, 1)
    circuit.sx([0, 1])
    circuit.measure([0, 1], [0, 1])
    return circuit


def superdense_angles(x: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles of :func:`superdense_template`, for many slices and blocks at once.

    Args:
        x: slices ``(..., 4)``, any length but zero (the angles of a zero slice are those of (1, 0, 0, 0)).
        q: blocks in SO(4), ``(..., 4, 4)``; leading dimensions broadcast against those of ``x``.

    Returns:
        ``(..., 6)`` in radians.

    Raises:
        ValueError: if a block is a reflection or not orthogonal, so not local in the magic basis, or x is not finite.
    """
    left, right = so4_to_quaternions(q)
    x = _scaled(x)
    first = quaternion_product(left, x / np.linalg.norm(x, axis=-1, keepdims=True))
    # Second qubit: R+ B^T R+ with R = RX(pi/2), see the module; a transpose turns Y, the last component, over.
    second = quaternion_product(quaternion_product(_RX_MINUS, right * [1.0, 1.0, 1.0, -1.0]), _RX_MINUS)
    first, second = np.broadcast_arrays(first, second)
    return np.concatenate([_zxzxz_angles(first), _zxzxz_angles(second)], axis=-1)


def quaternion_product(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Product of the matrices p_0 I + i(p_1 Z + p_2 X + p_3 Y) and q_0 I + ..., ``(..., 4)``."""
    p0, p1, p2, p3 = np.moveaxis(np.asarray(p, dtype=float), -1, 0)
    q0, q1, q2, q3 = np.moveaxis(np.asarray(q, dtype=float), -1, 0)
    return np.stack(
        [
            p0 * q0 - p1 * q1 - p2 * q2 - p3 * q3,
            p0 * q1 + p1 * q0 - (p2 * q3 - p3 * q2),
            p0 * q2 + p2 * q0 - (p3 * q1 - p1 * q3),
            p0 * q3 + p3 * q0 - (p1 * q2 - p2 * q1),
        ],
        axis=-1,
    )


def so4_to_quaternions(q: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two unit quaternions with Q x = a x b for every x.

    Q is a sum of e_m x e_n over the basis, Q = sum_mn C_mn L_m R_n, where L_m and R_n are the matrices of the
    multiplications by e_m from the left and e_n from the right; these 16 matrices are orthogonal, so
    C_mn = <L_m R_n, Q> / 4, and Q is a rotation exactly if C = a b^T has rank one.

    Args:
        q: ``(..., 4, 4)`` in SO(4).

    Returns:
        a and b, ``(..., 4)`` each.  The common sign of the two is arbitrary.

    Raises:
        ValueError: if some C is not of rank one to 1e-6: a reflection, or not orthogonal.
    """
    q = np.asarray(q, dtype=float)
    c = np.einsum("mnij,...ij->...mn", _LEFT_RIGHT, q) / 4
    row = np.abs(c).max(-1).argmax(-1)  # the largest row of a b^T is b up to a factor of at least 1/2
    b = np.take_along_axis(c, row[..., None, None], -2)[..., 0, :]
    b = b / np.linalg.norm(b, axis=-1, keepdims=True)
    a = np.einsum("...mn,...n->...m", c, b)
    error = np.abs(a[..., :, None] * b[..., None, :] - c).max(initial=0.0)
    length = np.abs(np.linalg.norm(a, axis=-1) - 1).max(initial=0.0)
    if not max(error, length) < 1e-6:
        raise ValueError(
            "a block is not in SO(4): reflections and non-orthogonal matrices are not A (x) B in the magic basis"
        )
    return a / np.linalg.norm(a, axis=-1, keepdims=True), b


_BASIS = np.eye(4)
_LEFT_RIGHT = np.array(
    [[quaternion_product(quaternion_product(m, _BASIS), n).T for n in _BASIS] for m in _BASIS]
)  # [m, n, i, j]: component i of e_m e_j e_n


def _zxzxz_angles(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles in time order of RZ SX RZ SX RZ for SU(2) matrices given as quaternions, up to a phase, ``(..., 3)``."""
    # RZ(f) RY(t) RZ(l) = RZ(f + pi) SX RZ(t + pi) SX RZ(l) up to a phase, and as a quaternion
    # (cos(t/2) cos((f+l)/2), -cos(t/2) sin((f+l)/2), sin(t/2) sin((f-l)/2), -sin(t/2) cos((f-l)/2)).
    q0, q1, q2, q3 = np.moveaxis(u, -1, 0)
    theta = 2 * np.arctan2(np.hypot(q2, q3), np.hypot(q0, q1))
    total, difference = 2 * np.arctan2(-q1, q0), 2 * np.arctan2(q2, -q3)
    phi, lam = (total + difference) / 2, (total - difference) / 2
    return np.stack([lam, theta + np.pi, phi + np.pi], axis=-1)
