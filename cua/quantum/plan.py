"""What a run takes, before anything is sent: circuits, jobs, shots, seconds of a processor."""

from dataclasses import dataclass

from cua.quantum.packing import PackedCircuit

MAX_EXECUTIONS = 10_000_000  # circuits times shots in one job (IBM, job limits)
OPEN_PLAN_S = 600.0  # free QPU seconds in 28 days on IBM's Open Plan
JOB_OVERHEAD_S = 2.0  # of every job, as IBM's documentation estimates it


@dataclass(frozen=True)
class Plan:
    """Attributes:
    circuits: to run, each with its own angles.
    shots: of each.
    jobs: they are sent as.
    shot_s: seconds of one shot, the delay before the next one included.
    """

    circuits: int
    shots: int
    jobs: int
    shot_s: float

    @classmethod
    def of(cls, packed: PackedCircuit, n_blocks: int, tokens: int, settings: int, shots: int) -> "Plan":
        """The plan of one pass of ``tokens`` slices through ``n_blocks`` blocks, in so many settings."""
        circuits = settings * tokens * packed.n_circuits(n_blocks)
        per_job = MAX_EXECUTIONS // shots
        if not per_job:
            raise ValueError(f"{shots:,} shots: a job carries {MAX_EXECUTIONS:,} executions at most")
        return cls(circuits, shots, -(-circuits // per_job), packed.shot_s())

    @property
    def qpu_s(self) -> float:
        """Estimated seconds of the processor."""
        return self.jobs * JOB_OVERHEAD_S + self.circuits * self.shots * self.shot_s

    def __str__(self) -> str:
        return (
            f"{self.circuits:,} circuits x {self.shots:,} shots in {self.jobs} jobs, about {self.qpu_s:.0f} s of a QPU "
            f"({100 * self.qpu_s / OPEN_PLAN_S:.0f} % of the Open Plan's 10 minutes)"
        )
