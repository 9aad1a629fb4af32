from functools import reduce
from itertools import product

import numpy as np
import pytest
from qiskit.circuit import Delay
from qiskit.circuit.library import CZGate, IGate, SXGate, XGate
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import PTM, DensityMatrix, Pauli, SuperOp, random_density_matrix
from qiskit_aer.noise import thermal_relaxation_error
from qiskit_aer.noise.device import basic_device_gate_errors
from qiskit_ibm_runtime.fake_provider import FakeSherbrooke

from cua.quantum.noise import DeviceNoise, ideal_transfer_matrix

GATES = {"id": IGate(), "x": XGate(), "sx": SXGate(), "cz": CZGate()}
PLACED = [(name, (qubit,)) for name in ("id", "x", "sx") for qubit in range(4)]
PLACED += [("cz", pair) for pair in ((0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2))]


def paulis(n: int) -> list[np.ndarray]:
    return [Pauli("".join(label)).to_matrix() for label in product("IXYZ", repeat=n)]


def pauli_vector(state: DensityMatrix) -> np.ndarray:
    return np.array([np.trace(p @ state.data).real for p in paulis(state.num_qubits)])


@pytest.mark.parametrize("name", GATES)
def test_transfer_matrix_by_its_definition(name):
    u, basis = GATES[name].to_matrix(), paulis(GATES[name].num_qubits)
    by_hand = [[np.trace(p @ u @ q @ u.conj().T).real / len(u) for q in basis] for p in basis]
    np.testing.assert_allclose(ideal_transfer_matrix(name), by_hand, atol=1e-14)


@pytest.mark.parametrize("name", ["rz", "h", "cx"])
def test_other_gates_are_refused(mesh_noise, name):
    with pytest.raises(ValueError, match=f"gate '{name}': a Heron's gates are rz, id, x, sx, cz"):
        ideal_transfer_matrix(name)
    with pytest.raises(ValueError, match="transpile for one first"):
        mesh_noise.gate(name, (0,))


@pytest.mark.parametrize(("name", "qubits"), PLACED, ids=str)
def test_a_noisy_gate_is_the_gate_and_then_its_error(mesh, mesh_noise, name, qubits):
    errors = {(n, tuple(q)): error for n, q, error in basic_device_gate_errors(target=mesh.target)}
    state = random_density_matrix(2 ** len(qubits), seed=0)
    after = state.evolve(GATES[name]).evolve(SuperOp(errors[name, qubits].to_quantumchannel()))
    matrix = mesh_noise.gate(name, qubits)
    np.testing.assert_allclose(matrix @ pauli_vector(state), pauli_vector(after), atol=1e-13)
    assert np.abs(matrix - ideal_transfer_matrix(name)).max() > 1e-6
    np.testing.assert_allclose(matrix[0], np.eye(len(matrix))[0], atol=1e-13)  # keeps the trace


def test_every_gate_has_its_own_error(mesh_noise):
    for (first, one), (second, other) in product(PLACED, PLACED):
        if one != other and first == second:
            assert not np.allclose(mesh_noise.gate(first, one), mesh_noise.gate(second, other), atol=1e-9)


@pytest.mark.parametrize("name", ["sx", "cz"])
def test_infidelity_is_the_calibrated_error_or_that_of_relaxation(marrakesh, marrakesh_noise, name):
    larger = {"calibrated": 0, "relaxation": 0}
    for qubits, properties in list(marrakesh.target[name].items())[:40]:
        d = 2 ** len(qubits)
        relaxed = 1.0  # process fidelity of relaxation for the gate's duration, diag(1, e^-t/T2, e^-t/T2, e^-t/T1)
        for qubit in qubits:
            one = marrakesh.target.qubit_properties[qubit]
            t2, t1 = np.exp(-properties.duration / min(one.t2, 2 * one.t1)), np.exp(-properties.duration / one.t1)
            relaxed *= (1 + 2 * t2 + t1) / 4
        errors = {"calibrated": properties.error, "relaxation": 1 - (d * relaxed + 1) / (d + 1)}
        transfer = (marrakesh_noise.gate(name, qubits) * ideal_transfer_matrix(name)).sum() / d**2
        assert 1 - (d * transfer + 1) / (d + 1) == pytest.approx(max(errors.values()), rel=1e-6)
        larger[max(errors, key=errors.get)] += 1
    assert min(larger.values()) > 0


def test_assignment_matrices(mesh_noise):
    for qubit in range(4):
        p10, p01 = 0.01 + 0.01 * qubit, 0.06 + 0.005 * qubit
        np.testing.assert_allclose(mesh_noise.assignment_matrix(qubit), [[1 - p10, p01], [p10, 1 - p01]], atol=1e-15)


def test_readout_error_on_a_real_calibration(marrakesh, marrakesh_noise):
    for (qubit,), properties in marrakesh.target["measure"].items():
        matrix = marrakesh_noise.assignment_matrix(qubit)
        np.testing.assert_allclose(matrix.sum(0), 1, atol=1e-15)
        assert (matrix[0, 1] + matrix[1, 0]) / 2 == pytest.approx(properties.error)


def test_what_is_not_calibrated_is_perfect():
    noise = DeviceNoise(GenericBackendV2(2, ["id", "x", "sx", "rz", "cz"], noise_info=False))
    for name, gate in GATES.items():
        np.testing.assert_array_equal(noise.gate(name, tuple(range(gate.num_qubits))), ideal_transfer_matrix(name))
    np.testing.assert_array_equal(noise.assignment_matrix(1), np.eye(2))


@pytest.mark.parametrize("qubits", [(0, 100), (0, 156), (2,), (3, 3)])
def test_a_gate_that_the_device_does_not_have(marrakesh_noise, qubits):
    with pytest.raises(ValueError, match=r"has no cz on qubits .*; disjoint_paths names some"):
        marrakesh_noise.gate("cz", qubits)


def test_name_and_size(mesh, mesh_noise, marrakesh_noise):
    assert (mesh_noise.name, mesh_noise.n_qubits) == (mesh.name, 4)
    assert (marrakesh_noise.name, marrakesh_noise.n_qubits) == ("fake_marrakesh", 156)


def test_transfer_matrices_compose_to_the_circuit():
    """Qubit 0 is the last digit: cz between x on qubit 0 and sx on qubit 1, against Qiskit's density matrix."""
    x, sx, cz = (ideal_transfer_matrix(name) for name in ("x", "sx", "cz"))
    ground = reduce(np.kron, [np.array([1.0, 0.0, 0.0, 1.0])] * 2)
    state = DensityMatrix.from_label("00").evolve(XGate(), [0]).evolve(SXGate(), [1]).evolve(CZGate(), [0, 1])
    np.testing.assert_allclose(cz @ np.kron(sx, x) @ ground, pauli_vector(state), atol=1e-14)


def test_other_processors_are_refused():
    with pytest.raises(ValueError, match="fake_sherbrooke has no cz; circuits and noise here are for processors with"):
        DeviceNoise(FakeSherbrooke())


def test_readout_errors_of_0_and_1_apart(marrakesh):
    properties, noise = marrakesh.properties(), DeviceNoise(marrakesh, asymmetric_readout=True)
    told = properties.qubit_property(3)
    p01, p10 = told["prob_meas1_prep0"][0], told["prob_meas0_prep1"][0]
    assert p01 != p10
    assert noise.assignment_matrix(3).tolist() == [[1 - p01, p10], [p01, 1 - p10]]
    even = DeviceNoise(marrakesh).assignment_matrix(3)
    assert even[0, 1] == even[1, 0] == pytest.approx((p01 + p10) / 2, abs=1e-3)


def test_asymmetric_readout_needs_a_calibration_that_tells(mesh):
    both = [DeviceNoise(mesh, asymmetric_readout=asymmetric).assignment_matrix(0) for asymmetric in (False, True)]
    np.testing.assert_array_equal(*both)


def test_an_idle_qubit_relaxes_as_aer_says(mesh, mesh_noise):
    properties = mesh.target.qubit_properties[2]
    error = thermal_relaxation_error(properties.t1, min(properties.t2, 2 * properties.t1), 3e-6)
    np.testing.assert_allclose(mesh_noise.idle(2, 3e-6), PTM(error.to_quantumchannel()).data.real, atol=1e-12)
    np.testing.assert_allclose(mesh_noise.idle(2, 0.0), np.eye(4))
    assert mesh_noise.idle_s(Delay(3, "us")) == pytest.approx(3e-6)
    assert mesh_noise.idle_s(Delay(100, "dt")) == pytest.approx(100 * mesh.target.dt)
