"""Jobs on a processor: each sent once, each count kept.

:class:`JobRunner` asks a sampler for the counts of blocks, through a journal.  Killed at any moment, a new one with the
same journal and the same calls gives the same counts: what is recorded is read, what was sent is asked for, and only
what never reached the service is sent.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from qiskit.primitives import BaseSamplerV2
from qiskit.providers import BackendV2
from qiskit_ibm_runtime import SamplerV2
from tqdm.auto import tqdm

from cua.quantum.journal import Journal, JournalError
from cua.quantum.packing import PackedCircuit
from cua.quantum.plan import MAX_EXECUTIONS, Plan, per_job
from cua.quantum.recorded import counts_of_call
from cua.quantum.service import Client, JobFailed, RunStopped

FORMAT = 1
BLOCK_MAP = "block i: circuit i // n_slots, slot i % n_slots; slot s: round s // n_pairs, pair s % n_pairs"
ROUNDING = 0.02  # of the largest slice: threads and machines add up in another order, some in bfloat16


class JobRunner:
    """Counts of blocks from a sampler, job by job, through a journal.

    with JobRunner(packed, sampler, "my-run", shots=4096) as jobs, run_on_device(adapter, jobs):
        perplexity(model, ids)

    A runner is used once: to go on with a run, or to read it again, make another one with the same journal.

    Args:
        packed: the circuit, on the device where it runs.
        sampler: IBM's executor-based one, or :class:`cua.quantum.sampler.EngineSampler` (on a real backend, too: a
            rehearsal with today's calibration).
        folder: of the journal.
        shots: of each circuit.
        service: that knows the jobs of ``sampler``; the backend's own if left out.  Without one, as for a fake
            backend, jobs end with this process.
        budget_s: QPU seconds that may be spent in all; ``None`` for no limit.  Checked before each pass: what was
            spent, by the service's account, and the plan of what is still to be run.
        max_executions: circuits times shots of one job.
        pending: jobs that may wait for their results at a time; the Open Plan allows three.
        progress: whether to show a bar.
        sleep: waits between two tries, for tests.

    Attributes:
        journal: what happened so far.
        twirls_measurements: whether IBM's sampler flips bits at random before each measurement, and back after it.

    Raises:
        ValueError: for a sampler of another device, or IBM's old ``SamplerV2``; for shots that no job carries or that
            twirling does not divide; for a budget that is not positive; for twirled measurements of a circuit with
            resets, which IBM's client cannot build.  Before a journal is begun.
        JournalError: see :class:`cua.quantum.journal.Journal`.
        RunStopped: if the service does not tell the calibration; before a journal is begun.
    """

    def __init__(
        self,
        packed: PackedCircuit,
        sampler: BaseSamplerV2,
        folder: str | Path,
        shots: int,
        service: Any = None,
        budget_s: float | None = None,
        max_executions: int = MAX_EXECUTIONS,
        pending: int = 3,
        progress: bool = True,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        backend = packed.backend
        if isinstance(sampler, SamplerV2):
            raise ValueError("SamplerV2 is deprecated; take qiskit_ibm_runtime.executor_sampler.Sampler")
        if (named := _device(sampler)) not in (None, backend.name):
            raise ValueError(f"the sampler is for {named}, the circuit for {backend.name}")
        per_job(shots, max_executions)
        if budget_s is not None and not budget_s > 0:
            raise ValueError(f"budget_s={budget_s}: seconds of a processor, more than 0; None for no limit")
        options = _options(sampler)
        self.twirls_measurements = bool(options.get("twirling", {}).get("enable_measure"))
        if packed.rounds > 1 and self.twirls_measurements:
            raise ValueError(
                "twirling.enable_measure: IBM's client cannot twirl a measurement that a reset follows; switch it off, "
                "or take a PackedCircuit with rounds=1"
            )
        if (twirled := _twirled_shots(options, shots)) != shots:
            raise ValueError(f"shots={shots}: with this twirling IBM's client makes it {twirled}; take those")
        self.packed, self.backend = packed, backend
        if service is None and hasattr(getattr(sampler, "options", None), "environment"):
            service = getattr(backend, "service", None)
        self.service = service
        self.shots, self.budget_s, self.max_executions = shots, budget_s, max_executions
        self.pending, self.progress, self.client = pending, progress, Client(sampler, self.service, sleep)
        self._calls, self._rep_delay_s = 0, options.get("execution", {}).get("rep_delay")
        header = {
            "format": FORMAT,
            "device": backend.name,
            "pairs": [list(pair) for pair in packed.pairs],
            "rounds": packed.rounds,
            "resets": packed.resets,
            "block_map": BLOCK_MAP,
            "shots": shots,
            "max_executions": max_executions,
            "sampler": type(sampler).__name__,
            "seed": getattr(sampler, "seed", None),
            "options": options,
        }
        versions = {name: version(name) for name in ("numpy", "qiskit", "qiskit-aer", "qiskit-ibm-runtime")}
        self._calibrated = self.client.ask(f"the calibration of {backend.name}", lambda: calibration_time(backend))
        self.journal = Journal(folder, header)
        self.journal.append("opened", versions=versions, calibrated=self._calibrated)

    def __enter__(self) -> "JobRunner":
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()

    def measure(
        self, x: NDArray[np.float64], settings: Sequence[NDArray[np.float64]]
    ) -> tuple[NDArray[np.float64], list[NDArray[np.int64]]]:
        """Counts of every slice in every block, in each of some settings.

        Args:
            x: slices ``(tokens, n_blocks, 4)``.
            settings: blocks ``(n_blocks, 4, 4)``, one array a setting.

        Returns:
            The slices that went in, and for each setting counts ``(tokens, n_blocks, 4)`` in the order of components.
            Where the journal has this call already its slices are taken, which may differ from ``x`` by rounding.

        Raises:
            RunStopped: if the run cannot go on.
            JournalError: if the journal has another call in this place, or cannot be written.
        """
        self._check_open()
        call, self._calls = self._calls, self._calls + 1
        step = per_job(self.shots, self.max_executions)
        jobs = -(-len(settings) * len(x) * self.packed.n_circuits(x.shape[1]) // step)
        x = self._announced(call, x, np.stack(settings), jobs)
        if left := [job for job in range(jobs) if not self.journal.find("counts", call=call, job=job)]:
            rows = np.concatenate([self.packed.angles(x, q).reshape(-1, 6 * self.packed.n_slots) for q in settings])
            self._run(call, [rows[job * step : (job + 1) * step] for job in range(jobs)], left)
        return x, list(counts_of_call(self.journal.folder, self.journal.events, call, len(settings), *x.shape[:2]))

    def _run(self, call: int, parts: list[NDArray[np.float64]], left: list[int]) -> None:
        """Send the jobs of a pass that are left, a few ahead of the one that is waited for, and record their counts."""
        circuits = sum(len(parts[job]) for job in left)
        self._within_budget(circuits, len(left))
        sent: dict[int, tuple[Any, str]] = {}
        total, silent = sum(map(len, parts)), not self.progress
        with tqdm(total=total, desc=f"pass {call}", unit="circuit", leave=False, disable=silent) as bar:
            bar.update(total - circuits)
            for i, job in enumerate(left):
                for ahead in left[i : i + self.pending]:
                    if ahead not in sent:
                        sent[ahead] = self._sent(call, ahead, parts[ahead])
                self._fetch(call, job, len(parts[job]), *sent[job])
                bar.update(len(parts[job]))

    def _check_open(self) -> None:
        if not self.journal.is_open:
            raise JournalError(
                f"this JobRunner is closed; make another one with the journal {self.journal.folder} to go on, or to "
                "read it again"
            )

    def keep(self, name: str, compute: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
        """An array that the run depends on beside its counts: as recorded under this name, or computed and recorded.

        Mitigation is kept like this, so that a run that goes on after a new calibration ends as it would have without.
        """
        if not (recorded := self.journal.find("kept", name=name)):
            recorded = [self.journal.append("kept", name=name, **self.journal.save(f"{name}.npy", compute()))]
        return self.journal.load(recorded[0])

    def spent_s(self) -> float:
        """QPU seconds of the jobs that have ended: as the service says, or the plan; none without a service."""
        return sum(line["usage_s"] for event in ("counts", "failed") for line in self.journal.find(event))

    def _plan(self, circuits: int, jobs: int) -> Plan:
        return Plan(circuits, self.shots, jobs, self.packed.shot_s(self._rep_delay_s))

    def _within_budget(self, circuits: int, jobs: int) -> None:
        if self.budget_s is not None:
            try:
                self._plan(circuits, jobs).check(self.budget_s, self.spent_s())
            except ValueError as error:
                raise RunStopped(f"this pass: {error}") from None

    def _announced(self, call: int, x: NDArray[np.float64], q: NDArray[np.float64], jobs: int) -> NDArray[np.float64]:
        """Record what goes in; or, if it was before, check that it is the same up to rounding, and take that."""
        if not (recorded := self.journal.find("call", call=call)):
            blocks, slices = (self.journal.save(f"{n}-{call:05}.npy", a) for n, a in (("blocks", q), ("slices", x)))
            self.journal.append("call", call=call, jobs=jobs, blocks=blocks, slices=slices)
            return x
        before = [self.journal.load(recorded[0][name]) for name in ("slices", "blocks")]
        for old, new in zip(before, (x, q), strict=True):
            if old.shape != new.shape or np.abs(old - new).max() > ROUNDING * np.abs(old).max():
                raise JournalError(
                    f"call {call} of {self.journal.folder} had other slices or blocks: the model, the adapter, the "
                    "importance of its blocks or the text is not the one that the journal was begun with; take another "
                    "folder"
                )
        return before[0]

    def _fetch(self, call: int, job: int, rows: int, handle: Any, tag: str) -> None:
        """Wait for a job and record its counts."""
        counts, reason = None, ""
        try:
            result = self.client.ask(f"the result of job {handle.job_id()}", handle.result)
            if result is None:  # of IBM's client, if the service has none
                raise JobFailed("came back without a result")
            counts = self.packed.counts(result[0].data)
            if counts.shape[0] != rows or not (counts.sum(-1) == self.shots).all():
                reason = f"came back with {counts[:, 0].sum()} of {rows * self.shots} shots"
        except JobFailed as error:
            reason = str(error)
        told = self.client.ask(f"the usage of job {handle.job_id()}", lambda: self._told(handle, rows))
        if reason:
            self.journal.append("failed", call=call, job=job, tag=tag, reason=reason, **told)
            raise RunStopped(f"job {handle.job_id()} {reason}; run again to send it anew")
        saved = self.journal.save(f"counts-{call:05}-{job}.npy", counts.astype(np.int32))
        self.journal.append("counts", call=call, job=job, tag=tag, **told, **saved)
        before = self.journal.find("opened")[0]["calibrated"]
        if told["calibrated"] not in (None, before):
            warnings.warn(
                f"{self.backend.name} was calibrated anew, on {told['calibrated']}; the pairs are those of {before}. "
                "The run goes on, and the journal says which job ran under which calibration",
                stacklevel=2,
            )

    def _told(self, handle: Any, rows: int) -> dict[str, Any]:
        """QPU seconds that a job took (the plan's, while the service has none), and the calibration it ran under."""
        if self.service is None:
            return {"usage_s": 0.0, "calibrated": self._calibrated}
        return {"usage_s": float(handle.usage() or self._plan(rows, 1).qpu_s), "calibrated": calibration_time(handle)}

    def _sent(self, call: int, job: int, rows: NDArray[np.float64]) -> tuple[Any, str]:
        """The job that runs these rows, sent now unless it was before; and its tag."""
        pub = self.packed.circuit, rows, self.shots
        attempts = self.journal.find("submit", call=call, job=job)
        failed = {line["tag"] for line in self.journal.find("failed", call=call, job=job)}
        if attempts and attempts[-1]["tag"] not in failed:
            tag = attempts[-1]["tag"]
            if self.service is None:  # a job of a process that has ended
                return self.client.send(tag, pub), tag
            if known := self.journal.find("submitted", tag=tag):
                return self.client.ask(f"job {known[0]['id']}", lambda: self.service.job(known[0]["id"])), tag
            handle = self.client.look_for(tag, since=attempts[-1]["at"]) or self.client.send(tag, pub)
        else:
            tag = f"cua-{uuid4().hex[:12]}"
            self.journal.append("submit", call=call, job=job, tag=tag, rows=len(rows))
            handle = self.client.send(tag, pub)
        self.journal.append("submitted", call=call, job=job, tag=tag, id=handle.job_id())
        return handle, tag


def _device(sampler: BaseSamplerV2) -> str | None:
    """Name of the device that a sampler is for, if it tells."""
    device = sampler.backend() if callable(getattr(sampler, "backend", None)) else getattr(sampler, "noise", None)
    return getattr(device, "name", None)


def _options(sampler: BaseSamplerV2) -> dict[str, Any]:
    """Options of IBM's sampler that change what is measured."""
    options = getattr(sampler, "options", None)
    if not hasattr(options, "model_dump"):
        return {}
    return options.model_dump(mode="json", include={"dynamical_decoupling", "twirling", "execution"})


def _twirled_shots(options: dict[str, Any], shots: int) -> int:
    """Shots that IBM's sampler makes of these: with twirling, as many for each randomization, rounded up."""
    twirling = options.get("twirling", {})
    if not (twirling.get("enable_gates") or twirling.get("enable_measure")):
        return shots
    from qiskit_ibm_runtime.executor.calculate_twirling_shots import calculate_twirling_shots  # a new client's

    return prod(calculate_twirling_shots(shots, twirling["num_randomizations"], twirling["shots_per_randomization"]))


def calibration_time(device: BackendV2 | Any) -> str | None:
    """When a device was last calibrated, by its own account, or before a job ran; in UTC."""
    properties = device.properties() if hasattr(device, "properties") else None
    return properties.last_update_date.astimezone(UTC).isoformat() if properties else None
