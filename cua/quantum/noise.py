"""Noise of single qubits and pairs, from a backend's own calibration, as Pauli transfer matrices.

The gate errors are those of Qiskit Aer's device model: after each gate, thermal relaxation over its duration, then as
much depolarisation as brings the gate to its calibrated error; RZ is virtual and free of error.  Measurement flips 0
and 1 alike, with their mean calibrated probability, or each with its own if asked for.  Qubits relax while they
idle only where a circuit says so by a delay.  Not modelled, here as there: crosstalk, leakage, drift, coherent errors.

A **Pauli transfer matrix** R of a channel E on k qubits has R[i, j] = Tr(P_i E(P_j)) / 2^k, real, ``(4^k, 4^k)``, with
the Paulis ordered I, X, Y, Z and the first qubit as the last digit (Qiskit's order).
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Delay
from qiskit.circuit.library import CZGate, IGate, SXGate, XGate
from qiskit.providers import BackendV2
from qiskit.quantum_info import PTM
from qiskit.transpiler import Target
from qiskit.utils import apply_prefix
from qiskit_aer.noise.device import basic_device_gate_errors, basic_device_readout_errors

IDEAL_GATES = {"id": IGate, "x": XGate, "sx": SXGate, "cz": CZGate}


@cache
def ideal_transfer_matrix(gate: str) -> NDArray[np.float64]:
    """Pauli transfer matrix of a gate without noise, ``(4, 4)`` or ``(16, 16)``; "id", "x", "sx" or "cz"."""
    if gate not in IDEAL_GATES:
        raise ValueError(f"gate {gate!r}: a Heron's gates are rz, {', '.join(IDEAL_GATES)}; transpile for one first")
    return PTM(IDEAL_GATES[gate]()).data.real


def check_gates(backend: BackendV2) -> None:
    """Refuse a device whose gates are not a Heron's."""
    if missing := {"sx", "rz", "cz", "measure"} - set(backend.target.operation_names):
        raise ValueError(
            f"{backend.name} has no {', '.join(sorted(missing))}; circuits and noise here are for processors with the "
            "gates rz, sx and cz (IBM Heron)"
        )


class DeviceNoise:
    """Calibrated noise of one device.

    Args:
        backend: a fake or real Heron backend (gates id, x, sx, rz, cz).
        asymmetric_readout: flip 0 and 1 each with its own probability (1 decays while it is measured, and is misread
            more often), which Aer's device model does not; for qubits whose probabilities the calibration tells.

    Gates and measurements that the calibration gives no error for are taken as perfect, as Aer does.

    Attributes:
        name: of the backend.
        n_qubits: of the device.

    Raises:
        ValueError: for a backend with other gates.
    """

    def __init__(self, backend: BackendV2, asymmetric_readout: bool = False) -> None:
        check_gates(backend)
        self.name, self.n_qubits, self._target = backend.name, backend.num_qubits, backend.target
        self._readout = {
            qubits[0]: np.array(error.probabilities)
            for qubits, error in basic_device_readout_errors(target=backend.target)
        }
        properties = backend.properties() if asymmetric_readout and hasattr(backend, "properties") else None
        for qubit in self._readout if properties else ():
            told = properties.qubit_property(qubit)
            if {"prob_meas1_prep0", "prob_meas0_prep1"} <= told.keys():
                p01, p10 = told["prob_meas1_prep0"][0], told["prob_meas0_prep1"][0]
                self._readout[qubit] = np.array([[1 - p01, p01], [p10, 1 - p10]])
        self._cache: dict[tuple[str, tuple[int, ...]], NDArray[np.float64]] = {}

    def gate(self, name: str, qubits: tuple[int, ...]) -> NDArray[np.float64]:
        """Pauli transfer matrix of a noisy gate on physical qubits, the gate first and its error after it.

        Raises:
            ValueError: for a gate that no Heron has, or one that this device does not have on these qubits.
        """
        key = name, tuple(qubits)
        if key not in self._cache:
            matrix = ideal_transfer_matrix(name)
            if not self._target.instruction_supported(name, key[1]):
                raise ValueError(f"{self.name} has no {name} on qubits {key[1]}; disjoint_paths names some that it has")
            alone = Target(num_qubits=self.n_qubits, dt=self._target.dt, qubit_properties=self._target.qubit_properties)
            alone.add_instruction(IDEAL_GATES[name](), {key[1]: self._target[name][key[1]]})
            for _, _, error in basic_device_gate_errors(target=alone):  # of the whole device it would take seconds
                matrix = PTM(error.to_quantumchannel()).data.real @ matrix
            self._cache[key] = matrix
        return self._cache[key]

    def idle(self, qubit: int, duration_s: float) -> NDArray[np.float64]:
        """Pauli transfer matrix of a qubit that relaxes to ``|0>`` for a while, ``(4, 4)``.

        Populations decay with T1, coherences with T2 (at most 2 T1); a qubit without calibrated times does not decay.
        """
        properties = self._target.qubit_properties
        t1, t2 = (getattr(properties and properties[qubit], time, None) or np.inf for time in ("t1", "t2"))
        z, xy = np.exp(-duration_s / t1), np.exp(-duration_s / min(t2, 2 * t1))
        return np.array([[1, 0, 0, 0], [0, xy, 0, 0], [0, 0, xy, 0], [1 - z, 0, 0, z]])

    def idle_s(self, delay: Delay) -> float:
        """Seconds that a delay instruction takes on this device."""
        if delay.unit == "dt":
            return delay.duration * self._target.dt
        return apply_prefix(delay.duration, delay.unit)

    def reset_matrix(self, qubit: int) -> NDArray[np.float64]:
        """Of the reset of a qubit, ``(2, 2)``: [after, before], columns sum to one.

        A reset is a measurement, and an X gate if it read 1.  Calibrations give it no error of its own; here it errs as
        often as the measurement does.
        """
        (read_0_of_0, read_0_of_1), (read_1_of_0, read_1_of_1) = self.assignment_matrix(qubit)
        return np.array([[read_0_of_0, read_1_of_1], [read_1_of_0, read_0_of_1]])

    def assignment_matrix(self, qubit: int) -> NDArray[np.float64]:
        """Of the measurement of a qubit, ``(2, 2)``: [observed, prepared], columns sum to one."""
        return self._readout.get(qubit, np.eye(2)).T
