"""Exact outcome probabilities of very many small noisy circuits at once.

One circuit, thousands of angle settings, several places on a device.  A density matrix of n qubits is kept as its
real Pauli vector r_P = Tr(P rho), ``4^n`` numbers: a noisy gate is one small real matrix, an RZ turns two components
into each other, and all circuits go through each gate together.  What comes before the first free angle is computed
once; what comes after the last is folded into the measurement, which becomes a ``(2^n, 4^n)`` matrix.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterExpression
from torch import Tensor

from cua.quantum.noise import DeviceNoise, ideal_transfer_matrix

Step = tuple[
    tuple[int, ...], int | Tensor
]  # qubits, and: number of the free RZ, or transfer matrices (n_places, 4^k, 4^k)

CHUNK_NUMBERS = 1 << 19  # Pauli components worked on at a time: 4 MB in float64, two cores' level-2 caches


class NoisyCircuit:
    """A circuit of rz, sx, x, id, cz, delays and final measurements, placed on one or several sets of physical qubits.

    Args:
        circuit: on n qubits; its parameters stand in rz gates, as sums with constant factors.
        noise: calibration of the device; ``None`` for perfect gates and measurements.
        places: ``(n_places, n)`` physical qubits for the circuit's qubits 0, 1, ...; not used without noise.

    Attributes:
        parameters: of the circuit, in the order of the angles.
        bits: classical bit of each qubit.
        places: as given; without noise one, of the circuit's own qubits.

    Raises:
        ValueError: for a gate outside that set, an angle that is no such sum, a measurement before a gate, qubits that
            are not each measured into a bit 0..n-1 of their own, or qubits or couplings that the device does not have.
    """

    def __init__(
        self, circuit: QuantumCircuit, noise: DeviceNoise | None = None, places: Sequence[Sequence[int]] = ()
    ) -> None:
        self.n_qubits = circuit.num_qubits
        self.parameters = list(circuit.parameters)
        if noise is None:
            self.places = [tuple(range(self.n_qubits))]
        else:
            self.places = [tuple(place) for place in places]
            for place in self.places:
                if len(set(place)) != self.n_qubits or not set(place) <= set(range(noise.n_qubits)):
                    raise ValueError(
                        f"{place} does not name {self.n_qubits} different qubits of {noise.name}, "
                        f"which has 0 to {noise.n_qubits - 1}"
                    )
            if not self.places:
                raise ValueError("a noisy circuit needs at least one set of physical qubits")
        self._coefficients: list[NDArray[np.float64]] = []  # of the free RZ: angle = coefficients . parameters + offset
        self._offsets: list[float] = []
        steps = self._steps(circuit, noise)
        if set(self.bits) != set(range(self.n_qubits)):
            raise ValueError(f"each qubit has to be measured, into bits 0 to {self.n_qubits - 1}; here: {self.bits}")
        free = [i for i, (qubits, action) in enumerate(steps) if isinstance(action, int)]
        first, last = (free[0], free[-1] + 1) if free else (0, 0)
        self._start = self._basis_states()
        for qubits, matrix in steps[:first]:
            self._start = _apply(self._start, matrix, qubits, self.n_qubits)
        self._steps_between = _fuse(steps[first:last])
        self._effects = self._measurement(circuit, noise)
        for qubits, matrix in reversed(steps[last:]):
            # E <- E G, as G^T on the Pauli index of E, its rows being the batch.
            transposed = _apply(self._effects.mT, matrix.mT, qubits, self.n_qubits)
            self._effects = transposed.mT

    def probabilities(
        self,
        angles: NDArray[np.float64] | Tensor,
        dtype: torch.dtype = torch.float64,
        start: NDArray[np.float64] | Tensor | None = None,
    ) -> Tensor:
        """Outcome probabilities, readout errors included.

        Args:
            angles: radians, ``(n_places, batch, n_parameters)`` in the order of ``self.parameters``.
            dtype: float64, or float32 for about twice the speed and errors of 1e-6.
            start: probabilities of the basis states that the qubits start in, ``(n_places, batch, 2^n)``; all in
                ``|0...0>`` if left out.

        Returns:
            ``(n_places, batch, 2^n)``; outcomes as integers, qubit 0 the lowest bit.

        Raises:
            ValueError: for angles or start of another shape.
        """
        angles = torch.as_tensor(angles)
        if angles.ndim != 3 or angles.shape[0] != len(self.places) or angles.shape[2] != len(self.parameters):
            raise ValueError(
                f"angles have shape {tuple(angles.shape)}; expected ({len(self.places)} places, circuits, "
                f"{len(self.parameters)} angles)"
            )
        if start is not None:
            start = torch.as_tensor(start)
            if start.shape != (*angles.shape[:2], 2**self.n_qubits):
                raise ValueError(
                    f"start has shape {tuple(start.shape)}; expected {(*angles.shape[:2], 2**self.n_qubits)}"
                )
        batch = angles.shape[1]
        out = torch.empty(len(self.places), batch, 2**self.n_qubits, dtype=dtype)
        chunk = max(1, CHUNK_NUMBERS // (len(self.places) * 4**self.n_qubits))
        coefficients = (
            torch.from_numpy(np.array(self._coefficients)).to(dtype).view(len(self._coefficients), len(self.parameters))
        )
        offsets = torch.tensor(self._offsets, dtype=dtype)[:, None, None]
        basis, effects = self._start.to(dtype), self._effects.to(dtype)
        steps = [(q, a if isinstance(a, int) else a.to(dtype)) for q, a in self._steps_between]
        for begin in range(0, batch, chunk):
            part = angles[:, begin : begin + chunk].to(dtype)
            turns = (coefficients @ part.mT).movedim(1, 0).add_(offsets)  # (n_free_rz, places, chunk)
            cos, sin = turns.cos(), turns.sin()
            if start is None:
                state = basis[:, :, :1].repeat(1, 1, part.shape[1])
            else:
                state = basis @ start[:, begin : begin + chunk].to(dtype).mT
            for qubits, action in steps:
                if isinstance(action, int):
                    _rotate_z(state, cos[action], sin[action], qubits[0], self.n_qubits)
                else:
                    state = _apply(state, action, qubits, self.n_qubits)
            out[:, begin : begin + chunk] = (effects @ state).mT
        return out

    def _steps(self, circuit: QuantumCircuit, noise: DeviceNoise | None) -> list[Step]:
        """The gates in order; fills in the free RZ's coefficients and offsets, and the bits."""
        steps: list[Step] = []
        measured: set[int] = set()
        self.bits: list[int | None] = [None] * self.n_qubits  # classical bit of each qubit
        for instruction in circuit.data:
            qubits = tuple(circuit.find_bit(qubit).index for qubit in instruction.qubits)
            name = instruction.operation.name
            if name == "barrier" or (name == "delay" and noise is None):
                continue
            if measured & set(qubits):
                raise ValueError(f"{name} on a qubit that has been measured: only final measurements are simulated")
            if name == "measure":
                measured |= set(qubits)
                self.bits[qubits[0]] = circuit.find_bit(instruction.clbits[0]).index
            elif name == "rz":
                coefficients, offset = _affine(instruction.operation.params[0], self.parameters)
                if coefficients.any():
                    steps.append((qubits, len(self._coefficients)))
                    self._coefficients.append(coefficients)
                    self._offsets.append(offset)
                else:
                    c, s = np.cos(offset), np.sin(offset)
                    turn = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1.0]])
                    steps.append((qubits, torch.from_numpy(turn).expand(len(self.places), 4, 4)))
            elif name == "delay":
                duration_s = noise.idle_s(instruction.operation)
                matrices = [noise.idle(place[qubits[0]], duration_s) for place in self.places]
                steps.append((qubits, torch.from_numpy(np.stack(matrices))))
            else:
                matrices = [
                    ideal_transfer_matrix(name)
                    if noise is None
                    else noise.gate(name, tuple(place[qubit] for qubit in qubits))
                    for place in self.places
                ]
                steps.append((qubits, torch.from_numpy(np.stack(matrices))))
        return steps

    def _basis_states(self) -> Tensor:
        """Pauli vectors of ``|0...0>``, ``|0...1>``, ..., ``(n_places, 4^n, 2^n)``."""
        one = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, -1.0]]).T
        states = np.ones((1, 1))
        for _ in range(self.n_qubits):
            states = np.kron(states, one)
        return torch.from_numpy(states).expand(len(self.places), -1, -1)

    def _measurement(self, circuit: QuantumCircuit, noise: DeviceNoise | None) -> Tensor:
        """p = E r before any folding, ``(n_places, 2^n, 4^n)``."""
        ideal = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, -1.0]]) / 2
        outcomes = np.arange(2**self.n_qubits)
        states = sum((outcomes >> bit & 1) << qubit for qubit, bit in enumerate(self.bits))  # outcome -> basis state
        rows = []
        for place in self.places:
            effects = np.ones((1, 1))
            for qubit in place:  # qubit 0 is the last factor
                one = ideal if noise is None else noise.assignment_matrix(qubit) @ ideal
                effects = np.kron(one, effects)
            rows.append(effects[states])
        return torch.from_numpy(np.stack(rows))


def _affine(angle: float | ParameterExpression, parameters: list[Parameter]) -> tuple[NDArray[np.float64], float]:
    """Coefficients and offset of an angle that is affine in the parameters."""
    coefficients = np.zeros(len(parameters))
    if not getattr(angle, "parameters", None):
        return coefficients, float(angle)
    for parameter in angle.parameters:
        slope = angle.gradient(parameter)
        if isinstance(slope, ParameterExpression) and slope.parameters:
            raise ValueError(f"rz({angle}): the angle has to be a sum of parameters with constant factors")
        coefficients[parameters.index(parameter)] = float(slope)
    return coefficients, float(angle.bind(dict.fromkeys(angle.parameters, 0.0)))


def _apply(state: Tensor, matrix: Tensor, qubits: tuple[int, ...], n_qubits: int) -> Tensor:
    """Apply ``(places, 4^k, 4^k)`` on k qubits of Pauli vectors ``(places, 4^n, batch)``."""
    places, _, batch = state.shape
    axes = [n_qubits - qubit for qubit in reversed(qubits)]  # axis 1 is the last qubit
    tensor = state.reshape(places, *[4] * n_qubits, batch)
    if axes == list(range(axes[0], axes[0] + len(axes))):  # neighbouring axes: a view will do
        left = 4 ** (axes[0] - 1)
        tensor = state.reshape(places, left, 4 ** len(axes), -1)
        return (matrix[:, None] @ tensor).reshape(places, -1, batch)
    front = list(range(1, len(axes) + 1))
    moved = tensor.movedim(axes, front)
    product = matrix @ moved.reshape(places, 4 ** len(axes), -1)
    return product.reshape(moved.shape).movedim(front, axes).reshape(places, -1, batch)


def _rotate_z(state: Tensor, cos: Tensor, sin: Tensor, qubit: int, n_qubits: int) -> None:
    """RZ on one qubit in place, an own angle for each circuit; ``cos`` and ``sin`` are ``(places, batch)``."""
    places, _, batch = state.shape
    paulis = state.view(places, 4 ** (n_qubits - 1 - qubit), 4, 4**qubit, batch)
    x, y, c, s = paulis[:, :, 1], paulis[:, :, 2], cos[:, None, None], sin[:, None, None]
    part = x * s
    x.mul_(c).addcmul_(y, s, value=-1)
    y.mul_(c).add_(part)


def _fuse(steps: list[Step]) -> list[Step]:
    """The same steps in fewer: each moves to the front past steps on other qubits, matrices there join, two qubits at
    most."""
    fused: list[Step] = []
    for qubits, action in steps:
        earliest = next((i for i in range(len(fused), 0, -1) if set(fused[i - 1][0]) & set(qubits)), 0)
        if isinstance(action, int):
            fused.insert(earliest, (qubits, action))
            continue
        for i in range(max(earliest - 1, 0), len(fused)):
            other, matrix = fused[i]
            both = tuple(sorted({*other, *qubits}))
            if not isinstance(matrix, int) and len(both) <= 2:
                fused[i] = both, _widen(action, qubits, both) @ _widen(matrix, other, both)
                break
        else:
            fused.insert(earliest, (qubits, action))
    return fused


def _widen(matrix: Tensor, qubits: tuple[int, ...], both: tuple[int, ...]) -> Tensor:
    """A transfer matrix on ``qubits`` as one on the (one or two, sorted) qubits ``both``."""
    identity = torch.eye(4 ** len(both), dtype=matrix.dtype).expand(len(matrix), -1, -1)
    return _apply(identity, matrix, tuple(both.index(q) for q in qubits), len(both))
