"""One circuit for a whole device: superdense circuits side by side on disjoint pairs, several rounds in a shot.

* *Slot* s = round * n_pairs + pair.  Block i stands in slot ``i % n_slots`` of circuit ``i // n_slots``, so that it
  always runs on pair ``i % n_pairs``.
* Angles of slot s are parameters 6s to 6s + 5.
* Outcomes of slot s are bits 2p and 2p + 1 of the classical register ``round{r}``, the pair's first qubit the lower.

Between two rounds every qubit is measured and reset.  Barriers let all pairs be measured at the same time, as a Heron
does it, and let no round begin before the last has ended.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
from qiskit.circuit import ParameterVector
from qiskit.primitives import BitArray, DataBin
from qiskit.providers import BackendV2

from cua.quantum.circuits import SUPERDENSE_OUTCOMES, superdense_angles, superdense_template
from cua.quantum.layout import gate_error, path_error
from cua.quantum.noise import check_gates

REP_DELAY_S = 250e-6  # between two shots: the default of every Heron, taken for a device that names none


class PackedCircuit:
    """The superdense circuits of many blocks as one ISA circuit.

    Args:
        backend: a Heron; the circuit is in its gates and on its qubits and needs no transpilation.
        pairs: disjoint coupled pairs, see :func:`cua.quantum.layout.disjoint_paths`.
        rounds: how often each pair is used in one shot; more than one takes a reset between two uses.
        resets: how often qubits are reset between two rounds.  A second one mends where the first read a 1 as 0, but
            not where either reads a 0 as 1.

    Attributes:
        circuit: on all qubits of the device, with ``6 * n_slots`` parameters.
        backend, pairs, rounds, resets: as given.
        n_slots: blocks that one circuit holds, ``rounds * len(pairs)``.
        slot_errors: chance that anything goes wrong in each slot, ``(n_slots,)``: see
            :func:`~cua.quantum.layout.path_error`; after a reset, also that one of its two measurements fails.

    Raises:
        ValueError: for no pairs, rounds or resets; for pairs that overlap or are not coupled; for a backend with other
            gates or without reset.
    """

    def __init__(self, backend: BackendV2, pairs: Sequence[tuple[int, int]], rounds: int = 1, resets: int = 1) -> None:
        check_gates(backend)
        self.pairs, self.rounds, self.resets = [tuple(map(int, pair)) for pair in pairs], rounds, resets
        self.n_slots = rounds * len(self.pairs)
        used = [qubit for pair in self.pairs for qubit in pair]
        if not self.pairs or rounds < 1 or resets < 1:
            raise ValueError(f"{len(self.pairs)} pairs, {rounds} rounds, {resets} resets: at least one of each")
        if len(set(used)) < len(used):
            raise ValueError("pairs share a qubit; take those of cua.quantum.layout.disjoint_paths")
        couplings = set(backend.target["cz"])
        if alien := [pair for pair in self.pairs if pair not in couplings and pair[::-1] not in couplings]:
            raise ValueError(f"{backend.name} does not couple the qubits {alien[0]}")
        if rounds > 1 and "reset" not in backend.target.operation_names:
            raise ValueError(f"{backend.name} has no reset, so a pair can be used only once in a shot")
        self.backend = backend
        first = np.array([path_error(backend, pair) for pair in self.pairs])
        works = [1 - gate_error(backend, "measure", (qubit,)) for qubit in used]
        later = 1 - (1 - first) * np.array(works).reshape(-1, 2).prod(1)
        self.slot_errors = np.concatenate([first, *[later] * (rounds - 1)])
        template = superdense_template()
        self.circuit = QuantumCircuit(QuantumRegister(backend.num_qubits, "q"), name=f"packed{self.n_slots}")
        angles = ParameterVector("angle", 6 * self.n_slots)
        for round_ in range(rounds):
            register = ClassicalRegister(2 * len(self.pairs), f"round{round_}")
            self.circuit.add_register(register)
            for _ in range(resets if round_ else 0):
                self.circuit.reset(used)
                self.circuit.barrier(used)
            for i, pair in enumerate(self.pairs):
                slot = angles[6 * (round_ * len(self.pairs) + i) :][:6]
                bound = template.assign_parameters(slot).remove_final_measurements(inplace=False)
                # CZ is symmetric, but a target may have it in one direction only; then that one is named.
                for gate in bound.data:
                    qubits = tuple(pair[bound.find_bit(qubit).index] for qubit in gate.qubits)
                    if len(qubits) == 2 and qubits not in couplings:
                        qubits = qubits[::-1]
                    self.circuit.append(gate.operation, qubits)
            self.circuit.barrier(used)
            self.circuit.measure(used, register)

    def deal(self, importance: NDArray[np.float64]) -> NDArray[np.int64]:
        """Which block to put where, so that the more important ones are in the better slots.

        Args:
            importance: of each block, ``(n_blocks,)``.

        Returns:
            A permutation: block ``deal[i]`` takes place i, which is slot ``i % n_slots``.
        """
        places = np.argsort(np.resize(self.slot_errors, len(importance)), kind="stable")
        dealt = np.empty(len(importance), dtype=np.int64)
        dealt[places] = np.argsort(-np.asarray(importance), kind="stable")
        return dealt

    def shot_s(self, rep_delay_s: float | None = None) -> float:
        """Seconds of one shot by the device's own times: reset, circuit, and a delay until the next shot.

        Args:
            rep_delay_s: the delay, if it is not the device's default.
        """
        if rep_delay_s is None:
            rep_delay_s = getattr(self.backend, "default_rep_delay", REP_DELAY_S)
        target = self.backend.target
        resets = [target["reset"].get((qubit,)) for pair in self.pairs for qubit in pair if "reset" in target]
        reset_s = max((properties.duration or 0.0 for properties in resets if properties), default=0.0)
        return reset_s + self.circuit.estimate_duration(target, "s") + rep_delay_s

    def n_circuits(self, n_blocks: int) -> int:
        """Circuits that hold ``n_blocks`` blocks with one slice each."""
        return -(-n_blocks // self.n_slots)

    def angles(self, x: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
        """Parameter values, one row a circuit.

        Args:
            x: slices ``(tokens, n_blocks, 4)``.
            q: blocks ``(n_blocks, 4, 4)`` in SO(4).

        Returns:
            ``(tokens, n_circuits, 6 * n_slots)`` radians in the order of ``circuit.parameters``; slots without a block
            get zeros.
        """
        tokens, n_blocks, _ = x.shape
        padded = np.zeros((tokens, self.n_circuits(n_blocks) * self.n_slots, 6))
        padded[:, :n_blocks] = superdense_angles(x, q)
        return padded.reshape(tokens, -1, 6 * self.n_slots)

    def counts(self, data: DataBin) -> NDArray[np.int64]:
        """Counts of every component in every slot, ``(*shape, n_slots, 4)`` for a PUB of any shape."""
        by_round = [outcome_counts(data[f"round{round_}"], len(self.pairs)) for round_ in range(self.rounds)]
        return np.concatenate(by_round, axis=-2)[..., list(SUPERDENSE_OUTCOMES)]


def outcome_counts(bits: BitArray, n_pairs: int) -> NDArray[np.int64]:
    """How often each of the outcomes 0 to 3 of bits (2p, 2p + 1) came up, ``(*bits.shape, n_pairs, 4)``."""
    array = bits.array[..., ::-1]  # BitArray's last byte holds the lowest bits
    counts = np.empty((*bits.shape, n_pairs, 4), dtype=np.int64)
    for pair in range(n_pairs):  # four pairs share a byte
        outcomes = array[..., pair // 4] >> (2 * (pair % 4)) & 3
        for outcome in range(4):
            counts[..., pair, outcome] = (outcomes == outcome).sum(-1)
    return counts
