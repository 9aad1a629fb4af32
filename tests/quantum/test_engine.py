from functools import reduce
from itertools import permutations

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.quantum_info import Statevector
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel
from qiskit_aer.noise.device import basic_device_readout_errors

from cua.experiments.speed import peak_bytes
from cua.quantum import engine
from cua.quantum.circuits import preparation_angles, superdense_angles, superdense_template, textbook_template
from cua.quantum.engine import NoisyCircuit
from cua.quantum.layout import disjoint_paths


def random_circuit(n_qubits: int, seed: int, n_gates: int = 40, line: bool = False) -> QuantumCircuit:
    """Every gate, cz between any two qubits or along a line, affine angles in three parameters, bits in any order."""
    rng = np.random.default_rng(seed)
    circuit, angles = QuantumCircuit(n_qubits, n_qubits), ParameterVector("angle", 3)
    for gate in rng.choice(["rz", "rz", "rz", "sx", "sx", "x", "id", "cz", "cz", "barrier"], n_gates):
        first, second = rng.permutation(n_qubits)[:2] if n_qubits > 1 else (0, 0)
        if line and n_qubits > 1:
            second = first + 1 if first == 0 or (first < n_qubits - 1 and second > first) else first - 1
        a, c = rng.normal(size=2)
        if gate == "rz":
            one, other = angles[int(rng.integers(3))], angles[int(rng.integers(3))]
            angle = [one, -one, c, a * one + c, a * one - other / 3 + c][rng.integers(5)]
            circuit.rz(angle, first)
        elif gate == "barrier":
            circuit.barrier()
        elif gate == "cz" and n_qubits > 1:
            circuit.cz(first, second)
        elif gate != "cz":
            getattr(circuit, gate)(first)
    for angle in angles:
        circuit.rz(angle, 0)
        circuit.sx(0)
    circuit.measure(range(n_qubits), rng.permutation(n_qubits).tolist())
    return circuit


def bit_order(circuit: QuantumCircuit) -> list[int]:
    """The circuit's qubits in the order of the classical bits that they are measured into."""
    measured = [one for one in circuit.data if one.name == "measure"]
    measured.sort(key=lambda one: circuit.find_bit(one.clbits[0]).index)
    return [circuit.find_bit(one.qubits[0]).index for one in measured]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_qubits", [1, 2, 3, 4])
def test_without_noise_it_is_the_statevector(n_qubits, seed):
    circuit = random_circuit(n_qubits, seed)
    angles = np.random.default_rng(seed).uniform(-7, 7, size=(5, 3))
    found = NoisyCircuit(circuit).probabilities(angles[None])
    assert found.shape == (1, 5, 2**n_qubits)
    for p, values in zip(found[0], angles, strict=True):
        state = Statevector(circuit.remove_final_measurements(inplace=False).assign_parameters(values))
        np.testing.assert_allclose(p, state.probabilities(bit_order(circuit)), rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def cases(marrakesh, rotations) -> dict[str, tuple[QuantumCircuit, list[tuple[int, ...]], np.ndarray]]:
    """Circuits, places and angles ``(places, batch, parameters)``: 192 + 144 blocks, and circuits of every gate."""
    rng = np.random.default_rng(0)
    pairs = disjoint_paths(marrakesh, 2)[::5] + [pair[::-1] for pair in disjoint_paths(marrakesh, 2)[1::6]]
    x = rng.normal(size=(24, 8, 4))
    angles = superdense_angles(x, rotations(24, 8, norm=rng.uniform(0.1, 5, size=(24, 8))))
    cases = {"superdense": (superdense_template(), pairs[:24], angles)}
    for n in (1, 2, 3, 4):
        for seed in range(3):
            paths = disjoint_paths(marrakesh, n)
            places = [paths[0], paths[7 + seed][::-1], paths[-1]]
            slices = rng.normal(size=(3, 4, 2**n))
            template = textbook_template(rotations(b=2**n, seed=seed, norm=3.0))
            cases[f"textbook {n} {seed}"] = template, places, preparation_angles(slices)
        places = [disjoint_paths(marrakesh, n)[12][::-1], disjoint_paths(marrakesh, n)[3]]
        cases[f"any {n}"] = random_circuit(n, n, line=True), places, rng.uniform(-4, 4, size=(2, 4, 3))
    return cases


@pytest.fixture(scope="module")
def by_aer(marrakesh, cases) -> dict[str, np.ndarray]:
    """Density matrices of Aer with the noise model of the same backend, and assignment matrices by hand."""
    assignment = {q[0]: error.probabilities.T for q, error in basic_device_readout_errors(target=marrakesh.target)}
    circuits, binds, responses = [], [], []
    for circuit, places, angles in cases.values():
        gates = circuit.remove_final_measurements(inplace=False)
        for place, values in zip(places, angles, strict=True):
            physical = [place[qubit] for qubit in bit_order(circuit)]
            whole = QuantumCircuit(max(place) + 1)
            whole.compose(gates, place, inplace=True)
            whole.save_probabilities(physical)
            circuits.append(whole)
            binds.append({p: values[:, i].tolist() for i, p in enumerate(circuit.parameters)})
            responses.append(reduce(np.kron, [assignment[qubit] for qubit in reversed(physical)]))
    simulator = AerSimulator(
        method="density_matrix", noise_model=NoiseModel.from_backend(marrakesh), max_parallel_threads=1
    )
    result = simulator.run(circuits, parameter_binds=binds).result()  # one call: it starts slowly
    true = iter([result.data(i)["probabilities"] for i in range(len(result.results))])
    response, expected = iter(responses), {}
    for name, (_, places, angles) in cases.items():
        expected[name] = np.stack([[next(true) for _ in angles[0]] @ next(response).T for _ in places])
    return expected


NAMES = ["superdense", *[f"textbook {n} {seed}" for n in (1, 2, 3, 4) for seed in range(3)]]
NAMES += [f"any {n}" for n in (1, 2, 3, 4)]


@pytest.fixture(scope="module")
def by_engine(marrakesh_noise, cases) -> dict[str, np.ndarray]:
    return {
        name: NoisyCircuit(circuit, marrakesh_noise, places).probabilities(angles).numpy()
        for name, (circuit, places, angles) in cases.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_noisy_probabilities_are_those_of_aer(cases, by_engine, by_aer, name):
    circuit, _, angles = cases[name]
    difference = by_engine[name] - by_aer[name]
    lost = 1 - by_aer[name].sum(-1, keepdims=True)  # Aer drops a gate's smallest Kraus operators, about 1e-9 of a CZ
    assert difference.min() > -1e-12
    assert (difference < lost + 1e-12).all()
    assert lost.max() < (2e-8 if circuit.num_qubits < 4 else 3e-7)
    np.testing.assert_allclose(by_engine[name].sum(-1), 1, atol=1e-12)
    ideal = np.stack([NoisyCircuit(circuit).probabilities(one[None])[0] for one in angles])
    assert np.abs(ideal - by_aer[name]).max() > 1e-3


def test_hundreds_of_blocks_agree_to_nine_digits(cases, by_engine, by_aer):
    blocks = [name for name in NAMES if not name.startswith("any")]
    agree = [np.abs(by_engine[name] - by_aer[name]).max(-1) < 1e-9 for name in blocks]
    assert sum(map(np.sum, agree)) >= 300
    assert len(set(cases["superdense"][1])) == 24


@pytest.fixture
def angles() -> np.ndarray:
    return np.random.default_rng(0).uniform(-4, 4, size=(3, 11, 3))


PLACES = [(0, 1, 2), (2, 1, 0), (3, 0, 1)]


@pytest.fixture
def circuit(mesh_noise) -> NoisyCircuit:
    return NoisyCircuit(random_circuit(3, 5), mesh_noise, PLACES)


@pytest.mark.parametrize("numbers", [1, 3 * 64 * 4, 3 * 64 * 11, 3 * 64 * 12])
def test_chunks_change_nothing(circuit, angles, monkeypatch, numbers):
    whole = circuit.probabilities(angles)
    monkeypatch.setattr(engine, "CHUNK_NUMBERS", numbers)
    torch.testing.assert_close(circuit.probabilities(angles), whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n_qubits", [2, 4])
def test_memory_does_not_grow_with_the_circuits(n_qubits):
    """Beyond angles and results; a chunk's share of it is there from the start."""
    circuit = NoisyCircuit(random_circuit(n_qubits, 1))
    beyond = []
    for n in 40_000, 160_000:
        angles = torch.zeros(1, n, 3, dtype=torch.float64)
        beyond.append(peak_bytes(lambda angles=angles: circuit.probabilities(angles)) - 8 * n * 2**n_qubits)
    assert 0 < beyond[1] < 1.2 * beyond[0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n_qubits", [1, 2, 3, 4])
def test_joining_gates_changes_nothing(n_qubits, seed, mesh_noise, monkeypatch):
    circuit, place = random_circuit(n_qubits, seed, n_gates=80), [(2, 0, 3, 1)[:n_qubits]]
    angles = np.random.default_rng(0).uniform(-4, 4, size=(1, 7, 3))
    joined = NoisyCircuit(circuit, mesh_noise, place)
    monkeypatch.setattr(engine, "_fuse", list)
    apart = NoisyCircuit(circuit, mesh_noise, place)
    assert len(joined._steps_between) < len(apart._steps_between)
    torch.testing.assert_close(joined.probabilities(angles), apart.probabilities(angles), rtol=0, atol=1e-13)


def test_the_superdense_circuit_is_two_matrices_and_six_angles():
    steps = NoisyCircuit(superdense_template())._steps_between
    assert sum(isinstance(action, int) for _, action in steps) == 6
    assert [qubits for qubits, action in steps if not isinstance(action, int)] == [(0, 1), (0, 1)]


def test_float32(circuit, angles):
    narrow = circuit.probabilities(angles, torch.float32)
    assert narrow.dtype == torch.float32
    assert circuit.probabilities(angles.astype(np.float32)).dtype == torch.float64
    torch.testing.assert_close(narrow.double(), circuit.probabilities(angles), rtol=0, atol=1e-5)


def test_many_places_are_each_by_itself(circuit, mesh_noise, angles):
    together = circuit.probabilities(angles)
    for i, place in enumerate(PLACES):
        alone = NoisyCircuit(random_circuit(3, 5), mesh_noise, [place]).probabilities(angles[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-14)
        assert i == 0 or not torch.allclose(together[i], circuit.probabilities(angles[[i] * 3])[0], atol=1e-4)


def test_probabilities_sum_to_one(circuit, angles):
    p = circuit.probabilities(torch.from_numpy(angles))
    torch.testing.assert_close(p.sum(-1), torch.ones(3, 11).double())
    assert p.min() > 0


def test_no_circuits_at_all(circuit):
    assert circuit.probabilities(np.zeros((3, 0, 3))).shape == (3, 0, 8)


def test_places_do_not_matter_without_noise(angles):
    found = NoisyCircuit(random_circuit(3, 5), None, PLACES)
    assert found.places == [(0, 1, 2)]
    assert found.probabilities(angles[:1]).shape == (1, 11, 8)


@pytest.mark.parametrize("bits", list(permutations(range(3))), ids=str)
def test_an_outcome_is_read_from_the_classical_bits(mesh_noise, bits):
    circuit = QuantumCircuit(3, 3)
    circuit.x(0)
    circuit.rz(Parameter("free"), 0)
    circuit.measure([0, 1, 2], bits)
    ideal = NoisyCircuit(circuit)
    assert ideal.bits == list(bits)
    assert ideal.probabilities(np.zeros((1, 1, 1)))[0, 0].argmax() == 2 ** bits[0]
    assignments = {
        bit: mesh_noise.assignment_matrix(3 - qubit) for qubit, bit in enumerate(bits)
    }  # [observed, prepared]
    expected = reduce(np.kron, [assignments[bit][:, int(bit == bits[0])] for bit in (2, 1, 0)])
    noisy = NoisyCircuit(circuit, mesh_noise, [(3, 2, 1)]).probabilities(np.zeros((1, 1, 1)))[0, 0]
    np.testing.assert_allclose(noisy, expected, atol=2e-3)  # up to the error of the gate


def test_affine_angles():
    a, b = Parameter("a"), Parameter("b")
    circuit = QuantumCircuit(1)
    for angle in (2 * a - b / 4 + 0.3, a - a + 1, -b, np.pi / 3, (a + b) * 0.5 - 1):
        circuit.sx(0)
        circuit.rz(angle, 0)
    circuit.sx(0)
    circuit.measure_all()
    noisy, values = NoisyCircuit(circuit), np.array([0.7, -1.9])
    assert noisy.parameters == [a, b]
    state = Statevector(circuit.remove_final_measurements(inplace=False).assign_parameters(values))
    np.testing.assert_allclose(noisy.probabilities(values[None, None])[0, 0], state.probabilities(), atol=1e-14)


A, B = Parameter("a"), Parameter("b")


@pytest.mark.parametrize("angle", [A * B, A**2, A.sin(), abs(A), A / (B + 1)], ids=str)
def test_other_angles_are_refused(angle):
    circuit = QuantumCircuit(1)
    circuit.rz(angle, 0)
    with pytest.raises(ValueError, match="the angle has to be a sum of parameters with constant factors"):
        NoisyCircuit(circuit)


def other_gate(circuit):
    circuit.h(0)


def rotation_of_another_axis(circuit):
    circuit.rx(A, 0)


def gate_after_measurement(circuit):
    circuit.measure(1, 1)
    circuit.cz(0, 1)


def second_measurement(circuit):
    circuit.measure([1, 1], [0, 1])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (other_gate, "gate 'h': a Heron's gates are"),
        (rotation_of_another_axis, "gate 'rx'"),
        (gate_after_measurement, "cz on a qubit that has been measured: only final measurements"),
        (second_measurement, "measure on a qubit that has been measured"),
    ],
)
@pytest.mark.parametrize("noisy", [False, True])
def test_what_cannot_be_simulated_is_refused(mesh_noise, noisy, build, message):
    circuit = QuantumCircuit(2, 2)
    circuit.sx(0)
    build(circuit)
    with pytest.raises(ValueError, match=message):
        NoisyCircuit(circuit, mesh_noise if noisy else None, [(0, 1)])


@pytest.mark.parametrize("place", [(0, 4), (-1, 0), (1, 1), (0,), (0, 1, 2)], ids=str)
def test_qubits_the_device_does_not_have(mesh_noise, place):
    with pytest.raises(ValueError, match=r"does not name 2 different qubits of generic_backend_4q, which has 0 to 3"):
        NoisyCircuit(superdense_template(), mesh_noise, [(0, 1), place])


def test_noise_needs_places(mesh_noise):
    with pytest.raises(ValueError, match="needs at least one set of physical qubits"):
        NoisyCircuit(superdense_template(), mesh_noise)


@pytest.mark.parametrize("shape", [(3,), (11, 3), (2, 11, 3), (1, 11, 3), (3, 11, 2), (3, 1, 11, 3)], ids=str)
def test_angles_of_another_shape(circuit, shape):
    with pytest.raises(ValueError, match=r"expected \(3 places, circuits, 3 angles\)"):
        circuit.probabilities(np.zeros(shape))
