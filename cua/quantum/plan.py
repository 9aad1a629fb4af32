"""What a run takes, before anything is sent: circuits, jobs, shots, seconds of a processor.

IBM's documentation estimates the usage of a job as 2 s + (time of a circuit + delay between two shots) x executions.
What the estimate assumes: each job is run as one piece; shots follow each other without further pauses; gates, resets
and measurements take the times that the device's target names.  Waiting in a queue is not usage and not in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cua.quantum.estimate import MANY, sample
from cua.quantum.packing import PackedCircuit

MAX_EXECUTIONS = 10_000_000  # circuits times shots in one job (IBM, job limits)
OPEN_PLAN_S = 600.0  # free QPU seconds in 28 days on IBM's Open Plan
JOB_OVERHEAD_S = 2.0  # of every job, as IBM's documentation estimates it


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        circuits: each with its own angles.
        shots: of each circuit.
        jobs: they are sent as.
        shot_s: seconds of one shot, the delay before the next one included.
    """

    circuits: int
    shots: int
    jobs: int
    shot_s: float

    @classmethod
    def of(
        cls,
        packed: PackedCircuit,
        n_blocks: int,
        tokens: int,
        shots: int,
        settings: int = 2,
        rep_delay_s: float | None = None,
        max_executions: int = MAX_EXECUTIONS,
    ) -> "Plan":
        """The plan of one pass: ``tokens`` slices through each of ``n_blocks`` blocks, in one job or more.

        Args:
            packed: the circuit.
            n_blocks: of the layer.
            tokens: that go through it.
            shots: of each circuit, in each setting.
            settings: 2 if signs are read, 1 if not.
            rep_delay_s: delay between two shots, if it is not the device's default.
            max_executions: circuits times shots of one job.

        Raises:
            ValueError: for numbers below 1, or more shots than a job may carry.
        """
        for name, number in {"n_blocks": n_blocks, "tokens": tokens, "shots": shots, "settings": settings}.items():
            if number < 1:
                raise ValueError(f"{name}={number}: at least 1")
        circuits = settings * tokens * packed.n_circuits(n_blocks)
        return cls(circuits, shots, -(-circuits // per_job(shots, max_executions)), packed.shot_s(rep_delay_s))

    @property
    def qpu_s(self) -> float:
        """Estimated seconds of the processor."""
        return self.jobs * JOB_OVERHEAD_S + self.circuits * self.shots * self.shot_s

    def check(self, budget_s: float, spent_s: float = 0.0) -> None:
        """Refuse what does not fit into a budget of QPU seconds, of which some are spent.

        Raises:
            ValueError: with what would fit.
        """
        left_s = budget_s - spent_s - self.jobs * JOB_OVERHEAD_S
        if self.qpu_s <= budget_s - spent_s:
            return
        circuits, shots = int(left_s / (self.shots * self.shot_s)), int(left_s / (self.circuits * self.shot_s))
        room = f"there is room for {circuits:,} such circuits, or for {shots:,} shots of each"
        if left_s <= 0 or not shots:
            room = "there is room for nothing of it"
        raise ValueError(
            f"{self}; of the budget of {budget_s:.0f} s {spent_s:.0f} s are spent, and {room}: take fewer tokens or "
            "shots, more rounds, or a larger budget"
        )

    def __add__(self, other: "Plan") -> "Plan":
        if (self.shots, self.shot_s) != (other.shots, other.shot_s):
            raise ValueError("plans of other shots or another circuit do not add up to one")
        return replace(self, circuits=self.circuits + other.circuits, jobs=self.jobs + other.jobs)

    def __str__(self) -> str:
        circuits, jobs = (
            f"{n:,} {word}{'s' * (n > 1)}" for n, word in ((self.circuits, "circuit"), (self.jobs, "job"))
        )
        share = 100 * self.qpu_s / OPEN_PLAN_S
        seconds = f"{self.qpu_s:.1f} s of a QPU, {share:.1f} % of the Open Plan"
        return f"{circuits} x {self.shots:,} shots, {jobs}: {seconds}"


def per_job(shots: int, max_executions: int = MAX_EXECUTIONS) -> int:
    """Circuits that one job carries.

    Raises:
        ValueError: for shots that no job carries.
    """
    if not 1 <= shots <= max_executions:
        raise ValueError(f"shots={shots!r}: a job carries 1 to {max_executions:,} executions")
    return max_executions // shots


class DryRun:
    """Takes the place of a :class:`~cua.quantum.jobs.JobRunner`: adds up what would be sent, and sends nothing::

        with run_on_device(adapter, dry := DryRun(packed, shots=4096)):
            model.generate(...)
        print(dry.plan)

    Blocks give their exact result, as from infinitely many shots on perfect qubits.

    Args:
        packed, shots, max_executions: as of the JobRunner.
        rep_delay_s: delay between two shots, if it is not the device's default.

    Attributes:
        plan: of everything so far; ``None`` before the first pass.
    """

    def __init__(
        self,
        packed: PackedCircuit,
        shots: int,
        rep_delay_s: float | None = None,
        max_executions: int = MAX_EXECUTIONS,
    ) -> None:
        self.packed, self.shots, self.rep_delay_s, self.max_executions = packed, shots, rep_delay_s, max_executions
        self.plan: Plan | None = None

    def measure(
        self, x: NDArray[np.float64], settings: Sequence[NDArray[np.float64]]
    ) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
        """As :meth:`cua.quantum.jobs.JobRunner.measure`, with expected counts."""
        limits = self.rep_delay_s, self.max_executions
        one = Plan.of(self.packed, x.shape[1], len(x), self.shots, len(settings), *limits)
        self.plan = one if self.plan is None else self.plan + one
        squares = [np.einsum("nij,tnj->tni", q, x) ** 2 + 1e-30 for q in settings]  # for slices that are all zeros
        return x, [MANY * y / y.sum(-1, keepdims=True) for y in squares]


class PerfectQubits(DryRun):
    """A :class:`DryRun` that draws its counts: perfect qubits, but only so many shots.

    Args:
        packed, shots: as of the DryRun.
        seed: of the shots.
    """

    def __init__(self, packed: PackedCircuit, shots: int, seed: int = 0) -> None:
        super().__init__(packed, shots)
        self.rng = np.random.default_rng(seed)

    def measure(
        self, x: NDArray[np.float64], settings: Sequence[NDArray[np.float64]]
    ) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
        """As :meth:`DryRun.measure`, with counts of ``shots`` shots."""
        x, expected = super().measure(x, settings)
        return x, [sample(counts, self.shots, self.rng).astype(np.float64) for counts in expected]
