import math
from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.transpiler import CouplingMap, InstructionProperties
from qiskit_ibm_runtime.fake_provider import (
    FakeBoston,
    FakeFez,
    FakeKingston,
    FakeMarrakesh,
    FakeSherbrooke,
    FakeTorino,
)
from scipy.optimize import linear_sum_assignment

from cua.quantum.layout import disjoint_paths, path_error

GATES = ["id", "x", "sx", "rz", "cz"]


def cost(backend, path) -> float:
    """-log of the chance that every coupling works twice, every SX four times and every measurement once."""
    errors = [max(backend.target["cz"][edge].error for edge in (pair, pair[::-1]) if edge in backend.target["cz"])
              for pair in pairwise(path) for _ in range(2)]  # fmt: skip
    errors += [backend.target["sx"][(qubit,)].error for qubit in path for _ in range(4)]
    errors += [backend.target["measure"][(qubit,)].error for qubit in path]
    return -sum(math.log1p(-error) if error < 1 else -math.inf for error in errors)


def set_error(backend, gate, qubits, error) -> None:
    backend.target.update_instruction_properties(gate, qubits, InstructionProperties(1e-7, error))


@pytest.fixture
def ring():
    """Eight qubits in a ring with a chord, all errors different and large."""
    edges = [(i, (i + 1) % 8) for i in range(8)] + [(1, 4)]
    both = edges + [pair[::-1] for pair in edges]
    backend = GenericBackendV2(8, list(GATES), coupling_map=CouplingMap(both), seed=1)
    rng = np.random.default_rng(3)
    for a, b in edges:
        properties = InstructionProperties(1e-7, rng.uniform(0.01, 0.3))
        backend.target.update_instruction_properties("cz", (a, b), properties)
        backend.target.update_instruction_properties("cz", (b, a), properties)
    for qubit in range(8):
        properties = InstructionProperties(1e-6, rng.uniform(0.01, 0.3))
        backend.target.update_instruction_properties("measure", (qubit,), properties)
    return backend


def all_paths(backend, length) -> list[tuple[int, ...]]:
    coupled = {frozenset(pair) for pair in backend.target["cz"]}
    paths = [p for p in permutations(range(backend.num_qubits), length) if p[0] < p[-1] or length == 1]
    return [path for path in paths if all(frozenset(pair) in coupled for pair in pairwise(path))]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 6])
def test_paths_on_a_real_device_are_disjoint_coupled_and_the_best_first(marrakesh, length):
    paths = disjoint_paths(marrakesh, length)
    qubits = [qubit for path in paths for qubit in path]
    assert len(set(qubits)) == len(qubits) == length * len(paths)
    coupled = {frozenset(pair) for pair in marrakesh.target["cz"]}
    assert all(frozenset(pair) in coupled for path in paths for pair in pairwise(path))
    costs = [cost(marrakesh, path) for path in paths]
    assert costs == sorted(costs)
    assert costs[-1] < math.inf, "no gate or measurement that always fails"
    assert disjoint_paths(marrakesh, length, limit=3) == paths[:3]
    assert len(paths) > 0.4 * 156 / length


def test_every_working_qubit_is_a_path_of_length_one():
    target = FakeBoston().target
    working = [q for q in range(156) if target["sx"][(q,)].error < 1 and target["measure"][(q,)].error < 0.5]
    assert len(working) < 156, "this device has a dead qubit"
    assert sorted(disjoint_paths(FakeBoston(), 1)) == [(qubit,) for qubit in working]


def best_matching(backend) -> tuple[int, float]:
    """Size and cost of the best matching of a heavy-hexagon lattice, by scipy: a bipartite graph, hence an assignment.

    Each pair is worth far more than all costs together, so that there are as many pairs as can be.
    """
    works = {q for (q,), p in backend.target["measure"].items() if p.error is None or p.error < 0.5}
    edges = [pair for pair in backend.target["cz"] if set(pair) <= works and cost(backend, pair) < math.inf]
    _both, colour = {*edges, *(edge[::-1] for edge in edges)}, {}
    while fresh := {a for a, _ in edges} - colour.keys():
        colour[min(fresh)] = 0
        while left := {
            b: 1 - colour[a] for a, b in [*edges, *(e[::-1] for e in edges)] if a in colour and b not in colour
        }:
            colour |= left
    costs = np.zeros((backend.num_qubits, backend.num_qubits))
    for a, b in edges:
        costs[(a, b) if colour[a] == 0 else (b, a)] = cost(backend, (a, b)) - 1000
    chosen = costs[linear_sum_assignment(costs)]
    return int((chosen < 0).sum()), float((chosen[chosen < 0] + 1000).sum())


DEVICES = [FakeMarrakesh, FakeFez, FakeKingston, FakeBoston, FakeTorino]


@pytest.mark.parametrize("device", DEVICES)
def test_on_a_real_device_as_many_pairs_as_can_be_at_the_least_cost(device):
    backend = device()
    pairs = disjoint_paths(backend, 2)
    size, least = best_matching(backend)
    assert len(pairs) == size
    assert sum(cost(backend, pair) for pair in pairs) == pytest.approx(least, abs=1e-4)


@pytest.mark.parametrize(("device", "working"), [(FakeMarrakesh, 63), (FakeFez, 64), (FakeKingston, 62)])
def test_64_pairs_on_a_heron_where_everything_works(device, working):
    """156 qubits have room for 64 pairs; a calibration with dead qubits or couplings leaves fewer."""
    backend = device()
    assert len(disjoint_paths(backend, 2)) == working
    for gate in ("cz", "sx", "measure"):
        for qubits, properties in list(backend.target[gate].items()):
            if properties.error is None or properties.error >= 0.5:
                set_error(backend, gate, qubits, 0.4)
    assert len(disjoint_paths(backend, 2)) == 64


@pytest.mark.parametrize("seed", range(20))
def test_of_all_matchings_of_a_damaged_device_the_best(seed):
    """Brute force: seven qubits, couplings at random, some of them dead."""
    rng = np.random.default_rng(seed)
    edges = [pair for pair in combinations(range(7), 2) if rng.random() < 0.5] or [(0, 1)]
    backend = GenericBackendV2(7, list(GATES), coupling_map=CouplingMap(edges), seed=seed)
    for gate, share in (("cz", 0.2), ("measure", 0.1)):
        for qubits in list(backend.target[gate]):
            set_error(backend, gate, qubits, 1.0 if rng.random() < share else rng.uniform(0.001, 0.3))
    alive = {q for (q,), p in backend.target["measure"].items() if p.error < 1}
    usable = [pair for pair in edges if set(pair) <= alive and backend.target["cz"][pair].error < 1]
    if not usable:
        with pytest.raises(ValueError, match="no chain of 2 qubits"):
            disjoint_paths(backend, 2)
        return
    matchings = [m for n in (1, 2, 3) for m in combinations(usable, n) if len({q for pair in m for q in pair}) == 2 * n]
    size = max(map(len, matchings))
    least = min(sum(cost(backend, pair) for pair in m) for m in matchings if len(m) == size)
    found = disjoint_paths(backend, 2)
    assert len(found) == size
    assert sum(cost(backend, pair) for pair in found) == pytest.approx(least, abs=1e-5)


def test_the_chance_of_an_error_on_a_path(marrakesh, ring):
    for backend in (marrakesh, ring):
        for path in (*disjoint_paths(backend, 2)[:5], *disjoint_paths(backend, 3)[:2]):
            assert path_error(backend, path) == pytest.approx(1 - math.exp(-cost(backend, path)))
    a, b = disjoint_paths(ring, 2)[0]
    set_error(ring, "cz", (b, a), 0.9)
    assert path_error(ring, (a, b)) == pytest.approx(1 - math.exp(-cost(ring, (a, b))))
    assert path_error(ring, (a, b)) > 0.98


def test_pairs_are_the_matching_of_least_cost(ring):
    edges = all_paths(ring, 2)
    matchings = [pairs for pairs in combinations(edges, 4) if len({q for pair in pairs for q in pair}) == 8]
    costs = [sum(cost(ring, pair) for pair in pairs) for pairs in matchings]
    best = matchings[int(np.argmin(costs))]
    assert len(matchings) > 1
    assert set(disjoint_paths(ring, 2)) == set(best)


@pytest.mark.parametrize("length", [3, 4])
def test_longer_chains_greedily(ring, length):
    free, expected = sorted(all_paths(ring, length), key=lambda path: cost(ring, path)), []
    while free:
        expected.append(free[0])
        free = [path for path in free if not set(path) & set(expected[-1])]
    assert disjoint_paths(ring, length) == expected


def test_matching_tells_nearly_equal_costs_apart():
    line = [(0, 1), (1, 2), (2, 3), (3, 0)]
    backend = GenericBackendV2(4, list(GATES), coupling_map=CouplingMap(line), noise_info=False)
    for pair in line:
        set_error(backend, "cz", pair, 0.01)
    set_error(backend, "cz", (1, 2), 0.01 - 1e-5)
    assert set(disjoint_paths(backend, 2)) == {(1, 2), (0, 3)}
    set_error(backend, "cz", (0, 1), 0.01 - 2e-5)
    assert set(disjoint_paths(backend, 2)) == {(0, 1), (2, 3)}


def test_of_two_directions_the_worse_counts(ring):
    best = a, b = disjoint_paths(ring, 2)[0]
    for order in ((a, b), (b, a)), ((b, a), (a, b)):
        set_error(ring, "cz", order[0], 0.9)
        set_error(ring, "cz", order[1], 0.001)
        assert disjoint_paths(ring, 2)[0] != best


@pytest.mark.parametrize("length", [1, 2, 3])
def test_what_carries_nothing_is_left_out(ring, length):
    def qubits() -> set[int]:
        return {qubit for path in disjoint_paths(ring, length) for qubit in path}

    (a, b), *_ = disjoint_paths(ring, 2)
    for pair in (a, b), (b, a):
        set_error(ring, "cz", pair, 1.0)
    assert (a, b) not in [pair for path in disjoint_paths(ring, length) for pair in pairwise(path)]
    set_error(ring, "measure", (a,), 0.499)
    if length < 3:
        assert a in qubits()
    set_error(ring, "measure", (a,), 0.5)
    assert a not in qubits()
    set_error(ring, "sx", (b,), 1.0)
    assert b not in qubits()


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("cutoff", [5, 1.5])
def test_cutoff_leaves_out_what_is_many_times_worse_than_the_median(marrakesh, length, cutoff):
    paths = disjoint_paths(marrakesh, length, cutoff=cutoff)
    assert 0 < len(paths) < len(disjoint_paths(marrakesh, length))
    used = {"cz": {frozenset(pair) for path in paths for pair in pairwise(path)}}
    used["sx"] = used["measure"] = {frozenset([qubit]) for path in paths for qubit in path}
    for gate, places in used.items():
        errors = {frozenset(qubits): p.error for qubits, p in marrakesh.target[gate].items()}
        assert all(errors[place] <= cutoff * np.median(list(errors.values())) for place in places)


def test_a_wide_cutoff_leaves_nothing_out(ring):
    assert disjoint_paths(ring, 2, cutoff=1000) == disjoint_paths(ring, 2)


@pytest.mark.parametrize("cutoff", [0, 0.99, math.nan])
def test_cutoff_is_at_least_one(ring, cutoff):
    with pytest.raises(ValueError, match="a multiple of the median error, at least 1"):
        disjoint_paths(ring, 2, cutoff=cutoff)


@pytest.mark.parametrize("length", [1, 2])
def test_other_processors_are_refused(length):
    with pytest.raises(ValueError, match=r"fake_sherbrooke has no cz; .* gates rz, sx and cz"):
        disjoint_paths(FakeSherbrooke(), length)


def test_a_device_without_calibration():
    backend = GenericBackendV2(4, list(GATES), coupling_map=CouplingMap.from_line(4), noise_info=False)
    assert set(disjoint_paths(backend, 2)) == {(0, 1), (2, 3)}
    assert disjoint_paths(backend, 4) == [(0, 1, 2, 3)]
    assert len(disjoint_paths(backend, 1)) == 4


@pytest.mark.parametrize("length", [0, -1])
def test_at_least_one_qubit(ring, length):
    with pytest.raises(ValueError, match=f"length={length}: a chain has at least one qubit"):
        disjoint_paths(ring, length)


def test_no_chain_fits(ring):
    with pytest.raises(ValueError, match="no chain of 9 qubits"):
        disjoint_paths(ring, 9)
    for qubit in range(8):
        set_error(ring, "measure", (qubit,), 0.5)
    for length in (1, 2, 3):
        with pytest.raises(ValueError, match=f"generic_backend_8q: no chain of {length} qubits with working gates"):
            disjoint_paths(ring, length)
