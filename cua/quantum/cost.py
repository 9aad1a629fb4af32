"""What blocks of any size cost as circuits: room on a device, gates, and seconds.

One pass of T tokens through n blocks of b = 2^q components, in some settings, takes

    settings x T x ceil(n / (chains x rounds))

circuits, where ``chains`` is how many chains of q qubits fit on the device side by side, and each is used up to
``rounds`` times in a shot.  A shot takes ``rounds x (circuit_s + reset_s)`` and the delay before the next one.  Waiting
in a queue is not in it.  :class:`~cua.quantum.packing.PackedCircuit` and :class:`~cua.quantum.plan.Plan` say the same
of 4x4 blocks on chosen pairs, gate by gate; a test compares the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import numpy as np
from qiskit import QuantumCircuit, transpile
from qiskit.providers import BackendV2
from scipy.stats import special_ortho_group

from cua.quantum.circuits import superdense_template, textbook_template
from cua.quantum.layout import disjoint_paths
from cua.quantum.noise import check_gates
from cua.quantum.packing import REP_DELAY_S
from cua.quantum.plan import Plan, per_job
from cua.quantum.shift import GENERATORS

SHIFTS = 2 * len(GENERATORS)  # settings more, for a gradient by the parameter-shift rule


@dataclass(frozen=True)
class BlockCircuit:
    """The circuit of one block on a device.

    Attributes:
        chains: how many of them fit on the device at a time.
        cz: two-qubit gates, routing on a chain included.
        depth: layers of gates, the measurement included.
        circuit_s: seconds from the first gate to the end of the measurement, on the best chain.
    """

    chains: int
    cz: int
    depth: int
    circuit_s: float


@dataclass(frozen=True)
class Processor:
    """What matters of a device for time.

    Attributes:
        name: of the device.
        qubits: in all.
        blocks: the circuit of a block, by its number of components b.
        reset_s: a reset of every qubit, median of the device.
        rep_delay_s: from the end of a shot to the start of the next one.
    """

    name: str
    qubits: int
    blocks: dict[int, BlockCircuit]
    reset_s: float
    rep_delay_s: float = REP_DELAY_S

    @classmethod
    def of(cls, backend: BackendV2, sizes: Sequence[int] = (2, 4, 8, 16)) -> "Processor":
        """Read off a device's target.

        4x4 blocks take the superdense circuit, others state preparation and a generic orthogonal matrix, as Qiskit
        synthesises them.

        Args:
            backend: a Heron or a device with its gates, and with times in its target.
            sizes: of blocks, powers of two.

        Raises:
            ValueError: for sizes that are no powers of two, a device with other gates, or without a time of a reset.
        """
        check_gates(backend)
        if "reset" not in backend.target or not (resets := _durations(backend, "reset")):
            raise ValueError(f"{backend.name}: its target names no time of a reset")
        blocks = {b: _block_circuit(backend, b) for b in sizes}
        delay = getattr(backend, "default_rep_delay", None) or REP_DELAY_S
        return cls(backend.name, backend.num_qubits, blocks, median(resets), delay)

    def shot_s(self, b: int, rounds: int = 1) -> float:
        """Seconds of a shot of b x b blocks, each chain used ``rounds`` times."""
        return rounds * (self.blocks[b].circuit_s + self.reset_s) + self.rep_delay_s

    def plan(
        self, n_blocks: int, b: int = 4, tokens: int = 1, shots: int = 8192, settings: int = 1, rounds: int = 1
    ) -> Plan:
        """One pass of ``tokens`` slices through each of ``n_blocks`` b x b blocks.

        Args:
            n_blocks: of the layer.
            b: components of a block.
            tokens: that go through it.
            shots: of each circuit, in each setting.
            settings: 1 for magnitudes, 2 for signs of 4x4 blocks, 1 + log2(b) for those of others;
                :data:`SHIFTS` more for gradients of 4x4 blocks.
            rounds: how often a chain may be used in a shot; no more often than as many circuits want.

        Raises:
            ValueError: for numbers below 1, a size that this processor was not read for, or more shots than a job may
                carry.
        """
        numbers = {"n_blocks": n_blocks, "tokens": tokens, "shots": shots, "settings": settings, "rounds": rounds}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name}={number}: at least 1")
        if b not in self.blocks:
            raise ValueError(f"b={b}: {self.name} was read for blocks of {', '.join(map(str, self.blocks))}")
        for_a_token, used = circuits_and_rounds(n_blocks, self.blocks[b].chains, rounds)
        circuits = settings * tokens * for_a_token
        return Plan(circuits, shots, -(-circuits // per_job(shots)), self.shot_s(b, used))


def circuits_and_rounds(n_blocks: int, chains: int, rounds: int) -> tuple[int, int]:
    """Circuits for one token in one setting, and how often each uses a chain: up to ``rounds`` times."""
    circuits = -(-n_blocks // (chains * rounds))
    return circuits, -(-n_blocks // (chains * circuits))


def _durations(backend: BackendV2, name: str) -> list[float]:
    return [p.duration for p in backend.target[name].values() if p and p.duration]


def _block_circuit(backend: BackendV2, b: int) -> BlockCircuit:
    template = _template(b)
    chains = disjoint_paths(backend, template.num_qubits)
    on_chain = transpile(template, backend, initial_layout=list(chains[0]), optimization_level=0)
    gates = on_chain.count_ops()
    seconds = on_chain.estimate_duration(backend.target, "s")
    return BlockCircuit(len(chains), gates.get("cz", 0), on_chain.depth(), seconds)


@lru_cache  # synthesis takes seconds for four qubits, more for five
def _template(b: int) -> QuantumCircuit:
    if b == 4:
        template = superdense_template()
    else:
        template = textbook_template(special_ortho_group.rvs(b, random_state=np.random.default_rng(0)))
    return template.assign_parameters(np.linspace(0.1, 1.0, template.num_parameters))
