"""Jobs on a processor: each sent once, each count kept.

:class:`JobRunner` asks a sampler for the counts of blocks, through a journal.  Killed at any moment, a new one with the
same journal and the same calls gives the same counts: what is recorded is read, what was sent is asked for, and only
what never reached the service is sent.
"""

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from qiskit.primitives import BaseSamplerV2
from qiskit.providers import BackendV2
from qiskit_ibm_runtime.exceptions import (
    IBMNotAuthorizedError,
    RuntimeInvalidStateError,
    RuntimeJobFailureError,
    RuntimeJobMaxTimeoutError,
)

from cua.quantum.journal import Journal, JournalError
from cua.quantum.packing import PackedCircuit
from cua.quantum.plan import MAX_EXECUTIONS, Plan

FORMAT = 1
TRIES = 6
ROUNDING = 0.02  # of the largest slice: activations are bfloat16, and threads or machines add them up in another order
SETTLE_S = 20.0  # how long the service may take to list a job that it has accepted


class RunStopped(RuntimeError):
    """A run cannot go on now.  Its journal is whole; the message says what happened and what to do."""


class JobFailed(RuntimeError):
    """A job came to an end without a result."""


class JobRunner:
    """Counts of blocks from a sampler, job by job, through a journal.

    Args:
        packed: the circuit.
        backend: where it runs.
        sampler: IBM's, a local one, or :class:`cua.quantum.sampler.EngineSampler`.
        folder: of the journal.
        shots: of each circuit.
        service: that knows the jobs of ``sampler`` (``QiskitRuntimeService``); ``None`` if jobs die with this process.
        budget_s: QPU seconds that may be spent in all; ``None`` for no limit.
        max_executions: circuits times shots of one job.
        pending: jobs that may wait for their results at a time.
        sleep: waits between two tries, for tests.

    Raises:
        JournalError: see :class:`cua.quantum.journal.Journal`.
    """

    def __init__(
        self,
        packed: PackedCircuit,
        backend: BackendV2,
        sampler: BaseSamplerV2,
        folder: str,
        shots: int,
        service: Any = None,
        budget_s: float | None = None,
        max_executions: int = MAX_EXECUTIONS,
        pending: int = 3,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.packed, self.backend, self.sampler, self.service = packed, backend, sampler, service
        self.shots, self.budget_s, self.max_executions = shots, budget_s, max_executions
        self.pending, self.sleep = pending, sleep
        header = {
            "format": FORMAT,
            "device": backend.name,
            "pairs": [list(pair) for pair in packed.pairs],
            "rounds": packed.rounds,
            "block_map": "block i: circuit i // n_slots, slot i % n_slots; slot s: round s // n_pairs, pair s % n_pairs",
            "shots": shots,
            "sampler": type(sampler).__name__,
            "seed": getattr(sampler, "seed", None),
            "options": _options(sampler),
        }
        self.journal = Journal(folder, header)
        self._calls = 0
        names = ("numpy", "qiskit", "qiskit-aer", "qiskit-ibm-runtime")
        self.journal.append("opened", versions={name: version(name) for name in names}, calibrated=calibration_time(backend))

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
        call, self._calls = self._calls, self._calls + 1
        x = self._announced(call, x, np.stack(settings))
        angles = np.stack([self.packed.angles(x, q) for q in settings])  # (settings, tokens, circuits, parameters)
        rows = angles.reshape(-1, angles.shape[-1])
        per_job = self.max_executions // self.shots
        parts = [rows[begin : begin + per_job] for begin in range(0, len(rows), per_job)]
        left = [job for job in range(len(parts)) if not self.journal.find("counts", call=call, job=job)]
        self._within_budget(sum(len(parts[job]) for job in left), len(left))
        sent: dict[int, tuple[Any, str]] = {}
        for i, job in enumerate(left):
            for ahead in left[i : i + self.pending]:
                if ahead not in sent:
                    sent[ahead] = self._sent(call, ahead, parts[ahead])
            self._fetch(call, job, len(parts[job]), *sent[job])
        done = [self.journal.find("counts", call=call, job=job)[0] for job in range(len(parts))]
        counts = np.concatenate([self.journal.load(line) for line in done])
        return x, list(counts.reshape(*angles.shape[:2], -1, 4)[:, :, : x.shape[1]])

    def spent_s(self) -> float:
        """QPU seconds of the jobs that are done, as the service reports them."""
        return sum(line["usage_s"] for line in self.journal.find("counts"))

    def _within_budget(self, circuits: int, jobs: int) -> None:
        plan, spent = Plan(circuits, self.shots, jobs, self.packed.shot_s()), self.spent_s()
        if self.budget_s is not None and spent + plan.qpu_s > self.budget_s:
            raise RunStopped(
                f"this pass needs {plan}; of the budget of {self.budget_s:.0f} s {spent:.0f} s are spent: take fewer tokens "
                "or shots, more rounds, or a larger budget"
            )

    def _announced(self, call: int, x: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
        """Record what goes in; or, if it was before, check that it is the same up to rounding, and take that."""
        if not (recorded := self.journal.find("call", call=call)):
            blocks, slices = (self.journal.save(f"{n}-{call:05}.npy", a) for n, a in (("blocks", q), ("slices", x)))
            self.journal.append("call", call=call, blocks=blocks, slices=slices)
            return x
        before = [self.journal.load(recorded[0][name]) for name in ("slices", "blocks")]
        for old, new in zip(before, (x, q), strict=True):
            if old.shape != new.shape or np.abs(old - new).max() > ROUNDING * np.abs(old).max():
                raise JournalError(
                    f"call {call} of {self.journal.folder} had other slices or blocks: the model, the adapter or the text "
                    "is not the one that the journal was begun with; take another folder"
                )
        return before[0]

    def _fetch(self, call: int, job: int, rows: int, handle: Any, tag: str) -> None:
        """Wait for a job and record its counts."""
        counts, reason = None, ""
        try:
            result = self._ask(f"the result of job {handle.job_id()}", handle.result)
            counts = self.packed.counts(result[0].data)
            if counts.shape[0] != rows or not (counts.sum(-1) == self.shots).all():
                reason = f"came back with {counts[:, 0].sum()} of {rows * self.shots} shots"
        except JobFailed as error:
            reason = str(error)
        if reason:
            self.journal.append("failed", call=call, job=job, tag=tag, reason=reason)
            raise RunStopped(f"job {handle.job_id()} {reason}; run again to send it anew")
        usage_s, calibrated = self._ask(f"the usage of job {handle.job_id()}", lambda: self._told(handle))
        saved = self.journal.save(f"counts-{call:05}-{job}.npy", counts.astype(np.int32))
        self.journal.append("counts", call=call, job=job, tag=tag, usage_s=usage_s, calibrated=calibrated, **saved)

    def _told(self, handle: Any) -> tuple[float, str | None]:
        """QPU seconds that a job took, and when the device was last calibrated before it."""
        if self.service is None:
            return 0.0, calibration_time(self.backend)
        return float(handle.usage()), calibration_time(handle)

    def _sent(self, call: int, job: int, rows: NDArray[np.float64]) -> tuple[Any, str]:
        """The job that runs these rows, sent now unless it was before; and its tag."""
        attempts = self.journal.find("submit", call=call, job=job)
        failed = {line["tag"] for line in self.journal.find("failed", call=call, job=job)}
        if attempts and attempts[-1]["tag"] not in failed:
            tag = attempts[-1]["tag"]
            if self.service is None:  # a job of a process that has ended
                return self._send(tag, rows), tag
            if known := self.journal.find("submitted", tag=tag):
                return self._ask(f"job {known[0]['id']}", lambda: self.service.job(known[0]["id"])), tag
            handle = self._look_for(tag, since=attempts[-1]["at"])
            if handle is None:
                handle = self._send(tag, rows)
        else:
            tag = f"cua-{uuid4().hex[:12]}"
            self.journal.append("submit", call=call, job=job, tag=tag, rows=len(rows))
            handle = self._send(tag, rows)
        self.journal.append("submitted", call=call, job=job, tag=tag, id=handle.job_id())
        return handle, tag

    def _send(self, tag: str, rows: NDArray[np.float64]) -> Any:
        """Submit once.  After an error that leaves open whether the job arrived, look for it before trying again."""
        if self.service is not None:
            self.sampler.options.environment.job_tags = [tag]
        for attempt in range(TRIES):
            try:
                return self.sampler.run([(self.packed.circuit, rows, self.shots)])
            except Exception as error:
                failure = error
            last = self._judge(failure, "the submission")  # out here, so that no exception holds the other one
            self.sleep(2.0**attempt)
            if self.service is not None and (handle := self._look_for(tag, since=_now())) is not None:
                return handle
        raise RunStopped(f"the submission failed {TRIES} times ({last}); run again to resume")

    def _look_for(self, tag: str, since: str) -> Any:
        """The job with this tag, or ``None`` if the service still knows none a while after ``since``."""
        age_s = (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()
        if not (found := self._ask("the list of jobs", lambda: self.service.jobs(job_tags=[tag], limit=2))):
            self.sleep(max(0.0, SETTLE_S - age_s))
            found = self._ask("the list of jobs", lambda: self.service.jobs(job_tags=[tag], limit=2))
        if len(found) > 1:
            raise RunStopped(f"the service knows {len(found)} jobs with the tag {tag}; cancel all but one and run again")
        return found[0] if found else None

    def _ask(self, what: str, question: Callable[[], Any]) -> Any:
        for attempt in range(TRIES):
            try:
                return question()
            except Exception as error:
                failure = error
            last = self._judge(failure, what)
            self.sleep(2.0**attempt)
        raise RunStopped(f"{what}: no answer after {TRIES} tries ({last}); run again to resume")

    def _judge(self, error: Exception, what: str) -> str:
        """One line on an error after which another try makes sense; raises for any other."""
        line, status = self._one_line(error), _http_status(error)
        if isinstance(error, (RuntimeJobFailureError, RuntimeInvalidStateError, RuntimeJobMaxTimeoutError)):
            raise JobFailed(f"failed: {line}")
        if isinstance(error, IBMNotAuthorizedError) or status in (401, 403):
            raise RunStopped(f"{what}: the service refused the credentials; save the account anew and run again to resume")
        if status == 429 or status >= 500 or isinstance(error, (OSError, TimeoutError)):  # requests' errors are OSErrors
            return line
        raise RunStopped(f"{what}: {line}")

    def _one_line(self, error: Exception) -> str:
        """What an error says, in one line and without secrets."""
        text = " ".join(str(error).split())
        account = getattr(self.service, "active_account", dict)() or {}
        for secret in filter(None, (account.get("token"), account.get("instance"))):
            text = text.replace(secret, "…")
        return f"{type(error).__name__}: {_LONG_WORD.sub('…', text)[:200]}"


_LONG_WORD = re.compile(r"[\w\-.~+/=:]{32,}")  # tokens, signed URLs, resource names; ids of jobs are shorter


def _http_status(error: Exception) -> int:
    """Status code of a response that an error tells of; -1 if it tells none."""
    known = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if known is None and (found := re.search(r"\b([45]\d\d) (?:Client|Server) Error", str(error))):
        known = int(found[1])
    return -1 if known is None else known


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _options(sampler: BaseSamplerV2) -> dict[str, Any]:
    """Options of IBM's sampler that change what is measured."""
    options = getattr(sampler, "options", None)
    if not hasattr(options, "model_dump"):
        return {}
    return {key: options.model_dump(mode="json")[key] for key in ("dynamical_decoupling", "twirling", "execution")}


def calibration_time(device: BackendV2 | Any) -> str | None:
    """When a device was last calibrated, by its own account, or before a job ran."""
    properties = device.properties() if hasattr(device, "properties") else None
    return properties.last_update_date.isoformat() if properties else None
