"""Where circuits sit on a device: disjoint sets of neighbouring qubits, best first."""

import math
from itertools import pairwise

import rustworkx as rx
from qiskit.providers import BackendV2


def disjoint_paths(backend: BackendV2, length: int, limit: int | None = None) -> list[tuple[int, ...]]:
    """Disjoint chains of coupled qubits for circuits that run side by side.

    The cost of a chain is -log of the chance that two uses of each of its couplings and one measurement of each of its
    qubits all succeed, by the backend's calibration; gates or measurements reported as failing always are left out.

    Args:
        backend: with errors in its target.
        length: qubits a chain, at least 1.
        limit: keep only the best.

    Returns:
        Physical qubits of each chain, in order along it, best chain first.  For pairs as many as the device has room
        for (a maximum matching, of least cost); for longer chains greedily, always the best that is still free.

    Raises:
        ValueError: for a length below 1, or if not one chain fits.
    """
    if length < 1:
        raise ValueError(f"length={length}: a chain has at least one qubit")
    measure = {qubits[0]: _cost(p.error if p else None) for qubits, p in backend.target["measure"].items()}
    couplings: dict[tuple[int, int], float] = {}
    for pair, properties in backend.target["cz"].items():  # in both directions; the worse one counts
        cost = 2 * _cost(properties.error if properties else None)
        key = (min(pair), max(pair))
        couplings[key] = max(cost, couplings.get(key, 0.0))
    graph = rx.PyGraph(multigraph=False)
    graph.add_nodes_from(range(backend.num_qubits))
    for (a, b), cost in couplings.items():
        if math.isfinite(cost + measure.get(a, math.inf) + measure.get(b, math.inf)):
            graph.add_edge(a, b, cost)

    def cost(path: tuple[int, ...]) -> float:
        edges = sum(graph.get_edge_data(a, b) for a, b in pairwise(path))
        return edges + sum(measure.get(qubit, math.inf) for qubit in path)

    if length == 1:
        paths = [(qubit,) for qubit in range(backend.num_qubits) if math.isfinite(cost((qubit,)))]
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


def _cost(error: float | None) -> float:
    return -math.log1p(-error) if error is not None and error < 1 else (0.0 if error is None else math.inf)


def _chains(graph: rx.PyGraph, length: int) -> list[tuple[int, ...]]:
    """Every simple path of ``length`` nodes, once."""
    paths = [(node,) for node in graph.node_indices()]
    for _ in range(length - 1):
        paths = [(*path, node) for path in paths for node in graph.neighbors(path[-1]) if node not in path]
    return [path for path in paths if path[0] < path[-1]]
