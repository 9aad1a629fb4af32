import numpy as np
import pytest
import torch
from qiskit import ClassicalRegister, QuantumCircuit
from qiskit.primitives import BitArray, DataBin
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import Statevector
from qiskit.transpiler import CouplingMap

import cua
from cua.quantum.circuits import superdense_angles
from cua.quantum.layout import disjoint_paths, path_error
from cua.quantum.packing import PackedCircuit, outcome_counts

GATES = ["id", "x", "sx", "rz", "cz", "reset"]


@pytest.fixture(scope="module")
def line():
    return GenericBackendV2(7, GATES, coupling_map=CouplingMap.from_line(7), seed=0)


@pytest.fixture(scope="module")
def blocks():
    rng = np.random.default_rng(0)
    return cua.cayley(cua.skew(torch.from_numpy(rng.normal(size=(9, 6))), 4)).numpy(), rng.normal(size=(5, 9, 4))


def test_every_instruction_is_one_of_the_device(marrakesh):
    packed = PackedCircuit(marrakesh, disjoint_paths(marrakesh, 2), rounds=2)
    circuit = packed.circuit
    for instruction in circuit.data:
        qubits = tuple(circuit.find_bit(qubit).index for qubit in instruction.qubits)
        name = instruction.operation.name
        assert name == "barrier" or marrakesh.target.instruction_supported(name, qubits)
    assert circuit.num_parameters == 6 * packed.n_slots == 12 * len(packed.pairs)
    assert circuit.count_ops()["cz"] == 4 * len(packed.pairs)
    assert PackedCircuit(marrakesh, packed.pairs).circuit.depth() == 10


def test_a_coupling_in_one_direction_only(blocks):
    one_way = GenericBackendV2(4, GATES, coupling_map=CouplingMap([(1, 0), (1, 2), (2, 3)]), seed=0)
    circuit = PackedCircuit(one_way, [(0, 1), (2, 3)]).circuit
    pairs = {tuple(circuit.find_bit(q).index for q in i.qubits) for i in circuit.data if i.operation.name == "cz"}
    assert pairs == {(1, 0), (2, 3)}


@pytest.mark.parametrize("rounds", [1, 2])
def test_each_slot_holds_its_block(line, blocks, rounds):
    """Every pair's part of the bound circuit, taken out of it gate by gate, is the block's own circuit."""
    q, x = blocks
    packed = PackedCircuit(line, [(0, 1), (3, 2), (5, 6)], rounds)
    angles = packed.angles(x, q)
    assert angles.shape == (5, packed.n_circuits(9), 6 * packed.n_slots)
    assert packed.n_circuits(9) == {1: 3, 2: 2}[rounds]
    bound = packed.circuit.assign_parameters(angles[4, -1])
    for pair in packed.pairs:
        states, part = [], QuantumCircuit(2)
        for instruction in bound.data:
            qubits = [bound.find_bit(qubit).index for qubit in instruction.qubits]
            name = instruction.operation.name
            if name == "measure" and qubits[0] == pair[0]:
                states.append(Statevector(part).probabilities())
                part = QuantumCircuit(2)
            elif name not in ("measure", "barrier", "reset") and set(qubits) <= set(pair):
                part.append(instruction.operation, [pair.index(qubit) for qubit in qubits])
        for round_, p in enumerate(states):
            block = (packed.n_circuits(9) - 1) * packed.n_slots + round_ * 3 + packed.pairs.index(pair)
            if block < 9:
                y = q[block] @ x[4, block]
                assert np.allclose(p[[0, 1, 3, 2]], y**2 / (y @ y), atol=1e-12)


def test_slots_without_a_block_get_zeros_and_the_angles_are_in_the_order_of_the_parameters(line, blocks):
    q, x = blocks
    packed = PackedCircuit(line, [(0, 1), (2, 3)], 2)
    angles = packed.angles(x, q)
    assert (angles[:, 2, 6:] == 0).all()
    assert np.array_equal(angles[:, 1, 6:12], superdense_angles(x, q)[:, 5])
    assert [p.index for p in packed.circuit.parameters] == list(range(24))


@pytest.mark.parametrize("n_pairs", [1, 3, 4, 9])
def test_outcomes_are_counted_as_qiskit_counts_them(n_pairs):
    rng = np.random.default_rng(n_pairs)
    bits = BitArray.from_bool_array(rng.random((2, 3, 50, 2 * n_pairs)) < 0.3, order="little")
    counts = outcome_counts(bits, n_pairs)
    assert counts.shape == (2, 3, n_pairs, 4)
    for pair in range(n_pairs):
        slice_ = bits.slice_bits([2 * pair, 2 * pair + 1])
        for index in np.ndindex(2, 3):
            expected = slice_.get_int_counts(index)
            assert counts[*index, pair].tolist() == [expected.get(outcome, 0) for outcome in range(4)]


def test_counts_are_in_the_order_of_components_and_rounds(line):
    packed = PackedCircuit(line, [(0, 1), (2, 3)], 2)
    rng = np.random.default_rng(0)
    raw = {f"round{r}": rng.random((3, 20, 4)) < 0.4 for r in range(2)}
    data = DataBin(**{name: BitArray.from_bool_array(b, order="little") for name, b in raw.items()}, shape=(3,))
    counts = packed.counts(data)
    assert counts.shape == (3, 4, 4)
    for slot in range(4):
        b = raw[f"round{slot // 2}"][..., 2 * (slot % 2) :][..., :2]
        outcome = b[..., 0] + 2 * b[..., 1]
        expected = np.stack([(outcome == o).sum(-1) for o in (0, 1, 3, 2)], -1)
        assert np.array_equal(counts[:, slot], expected)


@pytest.mark.parametrize(("pairs", "rounds", "message"), [
    ([], 1, "0 pairs"), ([(0, 1)], 0, "0 rounds"), ([(0, 1), (1, 2)], 1, "share a qubit"),
    ([(0, 2)], 1, r"couple.*\(0, 2\)"),
])  # fmt: skip
def test_what_cannot_be_packed_is_refused(line, pairs, rounds, message):
    with pytest.raises(ValueError, match=message):
        PackedCircuit(line, pairs, rounds)


def test_reuse_needs_a_reset():
    without = GenericBackendV2(2, GATES[:-1], coupling_map=CouplingMap.from_line(2), seed=0)
    without.target._gate_map.pop("reset", None)
    assert PackedCircuit(without, [(0, 1)]).n_slots == 1
    with pytest.raises(ValueError, match="no reset"):
        PackedCircuit(without, [(0, 1)], rounds=2)


def test_registers_are_named_by_round(line):
    packed = PackedCircuit(line, [(0, 1)], 3)
    assert packed.circuit.cregs == [ClassicalRegister(2, f"round{r}") for r in range(3)]


def test_later_rounds_err_more_by_the_reset(line):
    packed = PackedCircuit(line, [(0, 1), (3, 2)], rounds=3)
    first, later = packed.slot_errors[:2], packed.slot_errors[2:].reshape(2, 2)
    assert first.tolist() == [path_error(line, (0, 1)), path_error(line, (3, 2))]
    works = [np.prod([1 - line.target["measure"][(q,)].error for q in pair]) for pair in packed.pairs]
    np.testing.assert_allclose(later, np.tile(1 - (1 - first) * works, (2, 1)))


@pytest.mark.parametrize("n_blocks", [3, 6, 8, 15])
def test_the_important_blocks_get_the_good_slots(line, n_blocks):
    packed = PackedCircuit(line, [(0, 1), (3, 2), (5, 6)], rounds=2)
    importance = np.random.default_rng(n_blocks).random(n_blocks)
    dealt = packed.deal(importance)
    assert sorted(dealt) == list(range(n_blocks))
    errors = np.array([packed.slot_errors[place % 6] for place in range(n_blocks)])
    pairs = [(i, j) for i in range(n_blocks) for j in range(n_blocks) if errors[i] < errors[j]]
    assert pairs
    assert all(importance[dealt[i]] > importance[dealt[j]] for i, j in pairs)
