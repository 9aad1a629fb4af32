from copy import deepcopy

import numpy as np
import pytest
from qiskit_ibm_runtime.fake_provider import FakeNighthawk

from cua.quantum.cost import SHIFTS, BlockCircuit, Processor
from cua.quantum.layout import disjoint_paths
from cua.quantum.packing import PackedCircuit
from cua.quantum.plan import Plan
from cua.quantum.shift import shifted


@pytest.fixture(scope="module")
def heron(marrakesh):
    return Processor.of(marrakesh, (2, 4, 8))


@pytest.mark.parametrize("rounds", [1, 3, 17])
@pytest.mark.parametrize(("tokens", "settings"), [(1, 1), (83, 2)])
def test_time_is_that_of_the_packed_circuit(marrakesh, heron, rounds, tokens, settings):
    """Here every pair takes the median time, there all wait for the slowest: one per cent between them."""
    packed = PackedCircuit(marrakesh, disjoint_paths(marrakesh, 2), rounds)
    exact = Plan.of(packed, 1024, tokens, 4096, settings)
    ours = heron.plan(1024, 4, tokens, 4096, settings, rounds)
    assert (ours.circuits, ours.shots, ours.jobs) == (exact.circuits, exact.shots, exact.jobs)
    assert ours.qpu_s == pytest.approx(exact.qpu_s, rel=0.02)


def test_a_chain_is_used_no_more_often_than_the_circuits_want(heron):
    assert heron.plan(144, rounds=17) == heron.plan(144, rounds=3) != heron.plan(144, rounds=2)


def test_a_device_whose_target_names_no_time_of_a_reset_is_refused(mesh):
    mesh = deepcopy(mesh)
    for qubit in range(mesh.num_qubits):
        mesh.target.update_instruction_properties("reset", (qubit,), None)
    with pytest.raises(ValueError, match="its target names no time of a reset"):
        Processor.of(mesh)


def test_room_and_gates(marrakesh, heron):
    for b, block in heron.blocks.items():
        assert block.chains == len(disjoint_paths(marrakesh, b.bit_length() - 1))
    assert [heron.blocks[b].cz for b in (2, 4)] == [0, 2]
    assert 20 < heron.blocks[8].cz < 45  # chapter 5 counts about 31, by block
    assert heron.blocks[4].depth == 10


@pytest.mark.filterwarnings("ignore:Properties of fake_nighthawk")
def test_a_square_lattice_has_room_for_nearly_all_qubits_in_pairs():
    nighthawk = Processor.of(FakeNighthawk(), (4,))
    assert nighthawk.qubits == 120
    assert nighthawk.blocks[4].chains >= 59  # one qubit of this calibration does not work


def test_the_papers_run_is_the_number_of_circuits_that_a_full_matching_needs(heron):
    """64 pairs: 16 circuits a token, 1,328 for 83 tokens."""
    full = Processor("all pairs", 156, {4: BlockCircuit(64, 2, 10, 3e-6)}, 2.7e-6)
    assert full.plan(1024, tokens=83).circuits == 1328


def test_a_gradient_has_six_settings():
    assert len(shifted(np.eye(4)[None])) == SHIFTS


@pytest.mark.parametrize("wrong", [{"n_blocks": 0}, {"tokens": 0}, {"shots": 0}, {"settings": 0}, {"rounds": 0}])
def test_numbers_below_one_are_refused(heron, wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}=0: at least 1"):
        heron.plan(**{"n_blocks": 4} | wrong)


def test_a_size_that_was_not_read_is_refused(heron):
    with pytest.raises(ValueError, match="b=64: fake_marrakesh was read for blocks of 2, 4, 8"):
        heron.plan(4, b=64)
