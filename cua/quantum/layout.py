"""Where circuits sit on a device: disjoint sets of neighbouring qubits, best first."""

import math
from itertools import pairwise
from statistics import median

import rustworkx as rx
from qiskit.providers import BackendV2

from cua.quantum.noise import check_gates


def disjoint_paths(
    backend: BackendV2, length: int, limit: int | None = None, cutoff: float | None = None
) -> list[tuple[int, ...]]:
    """Disjoint chains of coupled qubits for circuits that run side by side.

    The cost of a chain is -log of the chance that two CZ on each of its couplings, four SX on each of its qubits and
    one measurement of each all succeed, by the backend's calibration: what one superdense circuit needs.  Gates and
    measurements that carry nothing, with a calibrated error of 1 (1/2 for measurements) or more, are left out.

    Args:
        backend: a Heron (gates rz, sx, cz), with errors in its target.
        length: qubits a chain, at least 1.
        limit: keep only the best.
        cutoff: leave out, too, every CZ, SX and measurement with an error of more than ``cutoff`` times the device's
            median for its kind; at least 1.

    Returns:
        Physical qubits of each chain, in order along it, best chain first.  For pairs as many as the device has room
        for (a maximum matching, of least cost); for longer chains greedily, always the best that is still free.

    Raises:
        ValueError: for a length or a cutoff below 1, a backend with other gates, or if not one chain fits.
    """
    if length < 1:
        raise ValueError(f"length={length}: a chain has at least one qubit")
    if cutoff is not None and not cutoff >= 1:
        raise ValueError(f"cutoff={cutoff}: a multiple of the median error, at least 1")
    check_gates(backend)
    costs = {name: _costs(backend, name, cutoff) for name in ("cz", "sx", "measure")}
    single = {
        qubit: 4 * costs["sx"][qubit,] + costs["measure"][qubit,]
        for qubit in range(backend.num_qubits)
        if (qubit,) in costs["sx"] and (qubit,) in costs["measure"]
    }
    couplings: dict[tuple[int, int], float] = {}
    for a, b in backend.target["cz"]:  # in both directions; the worse one counts
        cost = 2 * costs["cz"].get((a, b), math.inf)
        couplings[min(a, b), max(a, b)] = max(cost, couplings.get((min(a, b), max(a, b)), 0.0))
    graph = rx.PyGraph(multigraph=False)
    graph.add_nodes_from(range(backend.num_qubits))
    for (a, b), cost in couplings.items():
        if math.isfinite(cost) and {a, b} <= single.keys():
            graph.add_edge(a, b, cost)

    def cost(path: tuple[int, ...]) -> float:
        edges = sum(graph.get_edge_data(a, b) for a, b in pairwise(path))
        return edges + sum(single[qubit] for qubit in path)

    if length == 1:
        paths = [(qubit,) for qubit in single]
    elif length == 2:
        scale = 1_000_000  # rustworkx matches with whole weights, and maximises
        full = rx.PyGraph()
        full.add_nodes_from(range(backend.num_qubits))
        edges = [tuple(sorted(edge)) for edge in graph.edge_list()]
        worst = max(map(cost, edges), default=0.0)
        full.add_edges_from([(*edge, round(scale * (worst + 1 - cost(edge)))) for edge in edges])
        matching = rx.max_weight_matching(full, max_cardinality=True, weight_fn=int)
        paths = [tuple(sorted(pair)) for pair in matching]
    else:
        paths, used = [], set()
        for path in sorted(_chains(graph, length), key=cost):
            if not used & set(path):
                paths.append(path)
                used |= set(path)
    if not paths:
        raise ValueError(f"{backend.name}: no chain of {length} qubits with working gates and measurements")
    return sorted(paths, key=cost)[:limit]


def path_error(backend: BackendV2, path: tuple[int, ...]) -> float:
    """Chance that anything goes wrong in one superdense circuit on a chain of coupled qubits, by the calibration.

    1 - prod (1 - e), over two CZ on each coupling, four SX and a measurement on each qubit, e being their calibrated
    errors; of a coupling's two directions the worse counts.
    """
    edges = [((a, b), (b, a)) for a, b in pairwise(path)]
    errors = {
        "cz": [max(gate_error(backend, "cz", edge) for edge in both if edge in backend.target["cz"]) for both in edges],
        "sx": [gate_error(backend, "sx", (qubit,)) for qubit in path],
        "measure": [gate_error(backend, "measure", (qubit,)) for qubit in path],
    }
    return 1 - math.prod(
        (1 - e) ** times for name, times in (("cz", 2), ("sx", 4), ("measure", 1)) for e in errors[name]
    )


def gate_error(backend: BackendV2, name: str, qubits: tuple[int, ...]) -> float:
    """Calibrated error of a gate or measurement; 0 where the calibration gives none."""
    properties = backend.target[name][qubits]
    return properties.error if properties and properties.error is not None else 0.0


def _costs(backend: BackendV2, name: str, cutoff: float | None) -> dict[tuple[int, ...], float]:
    """-log(1 - error) of a gate wherever it can be used; 0 where the calibration gives no error."""
    useless = 0.5 if name == "measure" else 1.0
    errors = {tuple(qubits): gate_error(backend, name, qubits) for qubits in backend.target[name]}
    most = useless if cutoff is None else cutoff * median(errors.values())
    return {qubits: -math.log1p(-error) for qubits, error in errors.items() if error < useless and error <= most}


def _chains(graph: rx.PyGraph, length: int) -> list[tuple[int, ...]]:
    """Every simple path of ``length`` nodes, once."""
    paths = [(node,) for node in graph.node_indices()]
    for _ in range(length - 1):
        paths = [(*path, node) for path in paths for node in graph.neighbors(path[-1]) if node not in path]
    return [path for path in paths if path[0] < path[-1]]
