import numpy as np
import pytest
import torch
from qiskit import ClassicalRegister, QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.transpiler import CouplingMap
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel
from scipy.stats import chi2

import cua
from cua.quantum.circuits import SUPERDENSE_OUTCOMES, superdense_template
from cua.quantum.engine import NoisyCircuit
from cua.quantum.layout import disjoint_paths
from cua.quantum.noise import DeviceNoise, ideal_transfer_matrix
from cua.quantum.packing import PackedCircuit
from cua.quantum.sampler import EngineSampler

SHOTS = 20_000


@pytest.fixture(scope="module")
def device():
    """Six qubits in a line with large errors, so that they show."""
    backend = GenericBackendV2(
        6, ["id", "x", "sx", "rz", "cz", "reset"], coupling_map=CouplingMap.from_line(6), noise_info=True, seed=0
    )
    rng = np.random.default_rng(0)
    for gate, low, high in (("cz", 0.02, 0.1), ("sx", 0.001, 0.02), ("measure", 0.02, 0.2)):
        for qubits, properties in backend.target[gate].items():
            properties.error = rng.uniform(low, high)
            backend.target.update_instruction_properties(gate, qubits, properties)
    return backend


def too_unlikely(counts: np.ndarray, probabilities: np.ndarray, level: float = 1e-3) -> np.ndarray:
    """Whether counts ``(..., k)`` fit probabilities so badly that, among them all, this happens with probability
    ``level`` (chi-square, Bonferroni)."""
    expected = counts.sum(-1, keepdims=True) * probabilities
    statistic = ((counts - expected) ** 2 / np.maximum(expected, 1e-9)).sum(-1)
    return chi2.sf(statistic, counts.shape[-1] - 1) < level / statistic.size


def test_one_round_draws_from_the_engines_probabilities(device):
    packed = PackedCircuit(device, [(0, 1), (3, 2), (4, 5)])
    angles = np.random.default_rng(0).uniform(-3, 3, (4, 18))
    noise = DeviceNoise(device)
    (result,) = EngineSampler(noise).run([(packed.circuit, angles, SHOTS)]).result()
    counts = packed.counts(result.data)
    for i, pair in enumerate(packed.pairs):
        engine = NoisyCircuit(superdense_template(), noise, [pair])
        p = engine.probabilities(angles[None, :, 6 * i : 6 * i + 6])[0].numpy()[:, list(SUPERDENSE_OUTCOMES)]
        assert not too_unlikely(counts[:, i], p).any()
        assert too_unlikely(counts[:, i], p[::-1]).any(), "the test can fail"


def counts_of(result: dict[str, int], packed: PackedCircuit) -> np.ndarray:
    """Counts ``(n_slots, 4)`` in the order of components, from Aer's bit strings."""
    counts = np.zeros((packed.n_slots, 4))
    for bits, n in result.items():
        for round_, register in enumerate(reversed(bits.split()[-packed.rounds :])):
            for pair in range(len(packed.pairs)):
                outcome = int(register, 2) >> (2 * pair) & 3
                counts[len(packed.pairs) * round_ + pair, list(SUPERDENSE_OUTCOMES).index(outcome)] += n
    return counts


def too_different(ours: np.ndarray, theirs: np.ndarray, level: float = 1e-3) -> np.ndarray:
    """Whether two sets of counts ``(..., 4)`` of equal totals cannot come from one distribution (Bonferroni)."""
    statistic = ((theirs - ours) ** 2 / np.maximum(theirs + ours, 1)).sum(-1)
    return chi2.sf(statistic, 3) < level / statistic.size


@pytest.mark.parametrize("rounds", [1, 3])
def test_aer_draws_from_the_same_distribution(device, rounds):
    """With perfect resets, as Aer has them."""
    packed = PackedCircuit(device, [(0, 1), (3, 2), (4, 5)], rounds)
    angles = np.random.default_rng(1).uniform(-3, 3, (3, 6 * packed.n_slots))
    ours = packed.counts(
        EngineSampler(DeviceNoise(device), reset_errors=False).run([(packed.circuit, angles, SHOTS)]).result()[0].data
    )
    aer = AerSimulator.from_backend(device, seed_simulator=0)
    theirs = [aer.run(packed.circuit.assign_parameters(row), shots=SHOTS).result().get_counts() for row in angles]
    theirs = np.stack([counts_of(result, packed) for result in theirs])
    assert not too_different(ours, theirs).any()
    assert too_different(ours, theirs[::-1]).any(), "the test can fail"


@pytest.mark.parametrize("resets", [1, 2])
def test_a_reset_is_a_measurement_and_an_x_on_what_it_read(device, resets):
    """Spelled out with classical feedback, on Aer, with readout errors only."""
    packed = PackedCircuit(device, [(0, 1), (3, 2), (4, 5)], rounds=3, resets=resets)
    noise, model = DeviceNoise(device), NoiseModel()
    for qubit in range(6):
        model.add_readout_error(noise.assignment_matrix(qubit).T.tolist(), [qubit])
    noise.gate = lambda name, qubits: ideal_transfer_matrix(name)  # gates are perfect here
    spelled = packed.circuit.copy_empty_like()
    spelled.add_register(read := ClassicalRegister(6, "read"))
    for instruction in packed.circuit.data:
        if instruction.operation.name == "reset":
            (qubit,) = instruction.qubits
            bit = read[packed.circuit.find_bit(qubit).index]
            spelled.measure(qubit, bit)
            with spelled.if_test((bit, 1)):
                spelled.x(qubit)
        else:
            spelled.append(instruction)
    angles = np.random.default_rng(1).uniform(-3, 3, 6 * packed.n_slots)
    aer = AerSimulator(noise_model=model, seed_simulator=0)
    bound = spelled.assign_parameters(angles)
    theirs = np.zeros((packed.n_slots, 4))
    for bits, n in aer.run(bound, shots=SHOTS).result().get_counts().items():
        theirs += counts_of({bits.split(maxsplit=1)[1]: n}, packed)  # the last register comes first
    (result,) = EngineSampler(noise).run([(packed.circuit, angles[None], SHOTS)]).result()
    assert not too_different(packed.counts(result.data)[0], theirs).any()
    (result,) = EngineSampler(noise, reset_errors=False).run([(packed.circuit, angles[None], SHOTS)]).result()
    assert too_different(packed.counts(result.data)[0], theirs).any(), "reset errors can be seen"


def test_idle_qubits_relax(device):
    """A scheduled circuit with long delays, on Aer."""
    packed = PackedCircuit(device, [(0, 1), (3, 2), (4, 5)], rounds=2)
    delayed, rng = packed.circuit.copy_empty_like(), np.random.default_rng(2)
    for instruction in packed.circuit.data:
        if instruction.operation.name == "sx":
            delayed.delay(int(rng.choice([3000, 9000])), instruction.qubits[0], "ns")
        delayed.append(instruction)
    for qubit in range(6):
        device.target.qubit_properties[qubit].t1, device.target.qubit_properties[qubit].t2 = 80e-6, 50e-6
    angles = np.random.default_rng(1).uniform(-3, 3, (1, 6 * packed.n_slots))
    noise = DeviceNoise(device)
    aer = AerSimulator.from_backend(device, seed_simulator=0)
    theirs = counts_of(aer.run(delayed.assign_parameters(angles[0]), shots=SHOTS).result().get_counts(), packed)
    ours, hasty = (
        packed.counts(EngineSampler(noise, reset_errors=False).run([(circuit, angles, SHOTS)]).result()[0].data)[0]
        for circuit in (delayed, packed.circuit)
    )
    assert not too_different(ours, theirs).any()
    assert too_different(hasty, theirs).any(), "the delays can be seen"


def test_an_imperfect_reset_leaves_what_the_measurement_got_wrong(device):
    """X, measure, reset, measure: the second 1 comes from a reset that read 0, or from reading a 0 as 1."""
    circuit = QuantumCircuit(6, 2)
    circuit.x(0)
    circuit.measure(0, 0)
    circuit.reset(0)
    circuit.measure(0, 1)
    noise = DeviceNoise(device)
    a = noise.assignment_matrix(0)
    one = 1 - (noise.gate("x", (0,)) @ [1, 0, 0, 1])[3]
    one /= 2  # probability that X really flipped
    left = one * a[0, 1] + (1 - one) * a[1, 0]
    for errors, expected in ((True, left * a[1, 1] + (1 - left) * a[1, 0]), (False, a[1, 0])):
        (result,) = EngineSampler(noise, reset_errors=errors).run([(circuit, None, 200_000)]).result()
        seen = np.mean(result.data.c.slice_bits([1]).array)
        assert abs(seen - expected) < 5 * np.sqrt(expected / 200_000)


def test_the_same_pub_gives_the_same_counts_and_another_seed_others(device):
    packed = PackedCircuit(device, [(0, 1), (2, 3)])
    angles = np.random.default_rng(0).uniform(-3, 3, (2, 12))
    pub = (packed.circuit, angles, 100)

    def bits(sampler, pubs=(pub,), index=0):
        return sampler.run(list(pubs)).result()[index].data.round0.array

    one = EngineSampler(None)
    assert np.array_equal(bits(one), bits(EngineSampler(None)))
    assert np.array_equal(bits(one), bits(one, [(packed.circuit, -angles, 100), pub], 1)), "whatever ran before"
    assert not np.array_equal(bits(one), bits(EngineSampler(None, seed=1)))


def test_any_circuit_of_small_parts(device):
    """A GHZ state of three, a lone qubit with an X, and bits in another order."""
    angle = ParameterVector("t", 1)
    circuit = QuantumCircuit(6, 4)
    for qubit in (1, 2, 3):
        circuit.rz(np.pi / 2, qubit)
        circuit.sx(qubit)
        circuit.rz(np.pi / 2, qubit)
    for a, b in ((1, 2), (2, 3)):
        circuit.cz(a, b)
    circuit.x(5)
    circuit.rz(angle[0], 5)
    circuit.measure([3, 5, 1, 2], [0, 1, 2, 3])
    (result,) = EngineSampler(None).run([(circuit, [[0.3]], SHOTS)]).result()
    counts = result.data.c.get_int_counts(0)
    assert all(outcome & 2 for outcome in counts)
    assert len(counts) == 8
    assert max(counts.values()) < 0.14 * SHOTS


def test_without_shots(device):
    with pytest.raises(ValueError, match="shots"):
        EngineSampler(None).run([PackedCircuit(device, [(0, 1)]).circuit.assign_parameters(np.zeros(6))])


def test_qubits_of_one_part_are_reset_together(device):
    circuit = QuantumCircuit(6, 2)
    circuit.cz(0, 1)
    circuit.measure(0, 0)
    circuit.reset(0)
    circuit.sx(0)
    circuit.measure([0, 1], [0, 1])
    with pytest.raises(ValueError, match=r"\(0, 1\).*together"):
        EngineSampler(None).run([(circuit, None, 10)]).result()


def test_blocks_are_read_as_by_matrix(device):
    rng = np.random.default_rng(0)
    q, x = cua.cayley(cua.skew(torch.from_numpy(rng.normal(size=(5, 6))), 4)).numpy(), rng.normal(size=(2, 5, 4))
    packed = PackedCircuit(device, [(0, 1), (2, 3)], 2)
    (result,) = EngineSampler(None).run([(packed.circuit, packed.angles(x, q), SHOTS)]).result()
    counts = packed.counts(result.data).reshape(2, -1, 4)[:, :5]
    p = np.einsum("nij,tnj->tni", q, x) ** 2 / (x**2).sum(-1, keepdims=True)
    assert not too_unlikely(counts, p).any()


def test_a_whole_device_against_aer(marrakesh):
    """63 pairs at a time, 126 qubits: Aer's matrix product states can do it, as no two pairs are entangled."""
    packed = PackedCircuit(marrakesh, disjoint_paths(marrakesh, 2))
    angles = np.random.default_rng(0).uniform(-3, 3, (1, 6 * packed.n_slots))
    shots = 2_000
    aer = AerSimulator.from_backend(marrakesh, method="matrix_product_state", seed_simulator=0)
    theirs = counts_of(aer.run(packed.circuit.assign_parameters(angles[0]), shots=shots).result().get_counts(), packed)
    (sampled,) = EngineSampler(DeviceNoise(marrakesh)).run([(packed.circuit, angles, shots)]).result()
    ours = packed.counts(sampled.data)[0]
    assert len(ours) > 50
    assert not too_different(ours, theirs).any()
    assert too_different(ours, theirs[::-1]).any(), "the test can fail"
