"""Our noise engine behind Qiskit's sampler interface: circuits of a whole device, made of small independent parts."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from math import prod

import numpy as np
import rustworkx as rx
from numpy.typing import NDArray
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.primitives import (
    BaseSamplerV2,
    BitArray,
    DataBin,
    PrimitiveJob,
    PrimitiveResult,
    SamplerPubLike,
    SamplerPubResult,
)
from qiskit.primitives.containers.sampler_pub import SamplerPub

from cua.quantum.engine import NoisyCircuit
from cua.quantum.mitigation import readout_response, reset_response
from cua.quantum.noise import DeviceNoise

CHUNK_SHOTS = 1 << 22  # shots drawn at a time


@dataclass(frozen=True)
class _Part:
    """Equal small circuits, one on each of several sets of qubits."""

    circuit: NoisyCircuit
    places: list[tuple[int, ...]]
    columns: NDArray[np.int64]  # (n_places, n_parameters): of the parameter array
    bits: list[list[tuple[str, int]]]  # [place][outcome bit]: register and index
    resets: int  # before the first gate


class EngineSampler(BaseSamplerV2):
    """Samples circuits that fall into independent parts of a few qubits, by exact simulation of each part.

    A part is a set of qubits that CZs connect, between two resets.  Parts of equal form are simulated together.

    Args:
        noise: of the device whose qubits the circuits name, or ``None`` for perfect ones.
        seed: of the shots.  They depend on nothing but the seed and the PUB: the same PUB gives the same counts.
        reset_errors: whether resets err, see :meth:`~cua.quantum.noise.DeviceNoise.reset_matrix`.  Aer takes them to be
            perfect, as does ``False``.

    Shots of different parts are drawn independently; a qubit's state after an imperfect reset enters the next round as
    a probability.  Qubits relax in delays between their gates; before the first gate and after a measurement, where at
    most a wrong ``|1>`` would decay, delays are passed over.
    """

    def __init__(self, noise: DeviceNoise | None, seed: int = 0, reset_errors: bool = True) -> None:
        self.noise, self.seed, self.reset_errors = noise, seed, reset_errors
        self._programs: dict[int, tuple[QuantumCircuit, list[list[_Part]]]] = {}

    def run(self, pubs: Iterable[SamplerPubLike], *, shots: int | None = None) -> PrimitiveJob:
        """Sample every PUB.

        Raises:
            ValueError: without shots, or for a circuit that :class:`~cua.quantum.engine.NoisyCircuit` refuses.
        """
        coerced = [SamplerPub.coerce(pub, shots) for pub in pubs]
        if any(pub.shots is None for pub in coerced):
            raise ValueError("shots: give them to run() or with each PUB")
        job = PrimitiveJob(lambda: PrimitiveResult([self._sample(pub) for pub in coerced]))
        job._submit()
        return job

    def _sample(self, pub: SamplerPub) -> SamplerPubResult:
        values = pub.parameter_values.as_array(pub.circuit.parameters)
        rows = values.reshape(prod(values.shape[:-1]), values.shape[-1])
        rng = np.random.default_rng([self.seed, pub.shots, int.from_bytes(sha256(rows.tobytes()).digest()[:8])])
        outcomes = {
            register.name: np.zeros((len(rows), -(-register.size // 8), pub.shots), dtype=np.uint8)
            for register in pub.circuit.cregs
        }
        before: dict[tuple[int, ...], NDArray[np.float64]] = {}  # probabilities of the true states after each part
        for round_ in self._program(pub.circuit):
            for part in round_:
                start = self._after_reset(part, before, len(rows))
                angles = np.moveaxis(rows[:, part.columns], 1, 0)
                if self.noise is None:  # all places are alike
                    angles = angles.reshape(1, len(part.places) * len(rows), -1 if angles.size else 0)
                seen = part.circuit.probabilities(angles, start=start).numpy()
                seen = seen.reshape(len(part.places), len(rows), -1)
                self._draw(part, seen, pub.shots, outcomes, rng)
                if self.noise is not None and self.reset_errors:
                    for place, p in zip(part.places, seen, strict=True):
                        before[place] = p @ np.linalg.inv(readout_response(self.noise, place)).T
        data = {}
        for register in pub.circuit.cregs:
            packed = np.moveaxis(outcomes[register.name][:, ::-1], 1, -1)  # the last byte holds the lowest bits
            data[register.name] = BitArray(packed.reshape(*values.shape[:-1], *packed.shape[1:]), register.size)
        return SamplerPubResult(DataBin(**data, shape=values.shape[:-1]), metadata={"shots": pub.shots})

    def _draw(
        self,
        part: _Part,
        probabilities: NDArray[np.float64],
        shots: int,
        outcomes: dict[str, NDArray[np.uint8]],
        rng: np.random.Generator,
    ) -> None:
        """Draw outcomes at every place, and set their bits."""
        for p, bits in zip(probabilities, part.bits, strict=True):
            edges = np.cumsum(p, axis=-1, dtype=np.float64)[:, None, :-1]
            step = max(1, CHUNK_SHOTS // shots)
            for begin in range(0, len(p), step):
                rows = slice(begin, begin + step)
                uniform = rng.random((len(edges[rows]), shots))
                outcome = np.zeros(uniform.shape, dtype=np.uint8)
                for edge in np.moveaxis(edges[rows], -1, 0):
                    outcome += uniform > edge
                for place, (register, index) in enumerate(bits):
                    outcomes[register][rows, index // 8] |= (outcome >> place & 1) << (index % 8)

    def _after_reset(
        self, part: _Part, before: dict[tuple[int, ...], NDArray[np.float64]], n_rows: int
    ) -> NDArray[np.float64] | None:
        """What state the qubits of a part start in, ``(n_places, n_rows, 2^n)``."""
        if not any(place in before for place in part.places):
            return None
        ground = np.eye(2**part.circuit.n_qubits)[:1].repeat(n_rows, 0)
        return np.stack(
            [
                before[place] @ reset_response(self.noise, place, part.resets).T if place in before else ground
                for place in part.places
            ]
        )

    def _program(self, circuit: QuantumCircuit) -> list[list[_Part]]:
        """Parts of a circuit by round; kept, as taking apart the circuit of a whole device takes a second."""
        if id(circuit) not in self._programs:
            self._programs[id(circuit)] = circuit, _parts(circuit, self.noise)  # held, so that the id stays its own
        return self._programs[id(circuit)][1]


def _parts(circuit: QuantumCircuit, noise: DeviceNoise | None) -> list[list[_Part]]:
    """Take a circuit apart: qubits that CZs connect belong together, and a reset begins a new round."""
    graph = rx.PyGraph()
    graph.add_nodes_from(range(circuit.num_qubits))
    gates = [(i.operation, tuple(circuit.find_bit(q).index for q in i.qubits), i.clbits) for i in circuit.data]
    graph.add_edges_from_no_data([qubits for operation, qubits, _ in gates if operation.name == "cz"])
    place_of = {qubit: tuple(sorted(part)) for part in rx.connected_components(graph) for qubit in part}
    column = {parameter: i for i, parameter in enumerate(circuit.parameters)}

    gates_of: dict[tuple[int, ...], dict[int, list]] = {}  # [place][round]
    resets: dict[tuple[int, int], int] = Counter()  # of [qubit, round], before the round
    round_of, working, used = Counter(), set(), set()  # used since the last reset; working until measured
    for operation, qubits, clbits in gates:
        name = operation.name
        if name == "barrier" or (name == "delay" and not working >= set(qubits)):
            continue
        if name == "reset":
            round_of.update(used & set(qubits))
            used -= set(qubits)
            working -= set(qubits)
            resets[qubits[0], round_of[qubits[0]]] += 1
            continue
        place = place_of[qubits[0]]
        if len({round_of[qubit] for qubit in qubits}) > 1:
            raise ValueError(f"qubits {place} are coupled; they have to be reset together")
        gates_of.setdefault(place, {}).setdefault(round_of[qubits[0]], []).append((operation, qubits, clbits))
        used |= set(qubits)
        working = working - set(qubits) if name == "measure" else working | set(qubits)

    program: list[list[_Part]] = []
    for number in range(1 + max((max(rounds) for rounds in gates_of.values()), default=-1)):
        alike: dict[tuple, list[tuple[tuple[int, ...], list[int], list[tuple[str, int]], QuantumCircuit]]] = {}
        for place, rounds in gates_of.items():
            times = {resets[qubit, number] for qubit in place}
            if len(times) > 1:
                raise ValueError(f"qubits {place} are coupled; they have to be reset together")
            if number in rounds:
                form, *one = _part(circuit, place, rounds[number], column)
                alike.setdefault((times.pop(), *form), []).append((place, *one))
        program.append(
            [
                _Part(
                    NoisyCircuit(same[0][3], noise, [place for place, *_ in same]),
                    [place for place, *_ in same],
                    np.array([columns for _, columns, _, _ in same], dtype=np.int64),
                    [bits for _, _, bits, _ in same],
                    form[0],
                )
                for form, same in alike.items()
            ]
        )
    return program


def _part(circuit: QuantumCircuit, place: tuple[int, ...], gates: list, column: dict[Parameter, int]):
    """Form, parameter columns, bits and circuit of one part in one round."""
    small = QuantumCircuit(len(place), len(place))
    parameters, columns, form = ParameterVector("angle", len(gates)), [], []
    bits: list[tuple[str, int]] = [("", 0)] * len(place)
    for operation, qubits, clbits in gates:
        local = [place.index(qubit) for qubit in qubits]
        if operation.name == "measure":
            (register, index), *_ = circuit.find_bit(clbits[0]).registers
            bits[local[0]] = register.name, index
            small.measure(local[0], local[0])
            form.append(("measure", *local))
        elif operation.params and isinstance(operation.params[0], Parameter):
            small.append(type(operation)(parameters[len(columns)]), local)
            columns.append(column[operation.params[0]])
            form.append((operation.name, *local, "free"))
        else:
            small.append(operation, local)
            form.append((operation.name, *local, *operation.params))
    return tuple(form), columns, bits, small
