"""Talking to a service that may fail: what to try again, what to give up, what to say of it.

No message says more than one line, and none holds a credential: the active account's key and instance, and whatever
else looks like a key, are cut out of what the service or the network said.
"""

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from qiskit.primitives import BaseSamplerV2, SamplerPubLike
from qiskit_ibm_runtime.exceptions import (
    IBMNotAuthorizedError,
    RuntimeInvalidStateError,
    RuntimeJobFailureError,
    RuntimeJobMaxTimeoutError,
)
from requests import RequestException

TRIES = 6
SETTLE_S = 20.0  # how long the service may take to list a job that it has accepted


class RunStopped(RuntimeError):
    """A run cannot go on now.  Its journal is whole; the message says what happened and what to do."""


class JobFailed(RuntimeError):
    """A job came to an end without a result."""


class Client:
    """Submits jobs and asks for them.

    Args:
        sampler: that submits.
        service: that knows its jobs (``QiskitRuntimeService``); ``None`` if they end with this process.
        sleep: waits between two tries.

    Raises:
        RunStopped: in each method, if there is no answer after some tries, or none that another try would change.
        JobFailed: if the answer is that a job failed or was cancelled.
    """

    def __init__(self, sampler: BaseSamplerV2, service: Any, sleep: Callable[[float], None] = time.sleep) -> None:
        self.sampler, self.service, self.sleep = sampler, service, sleep
        self._tags = list(sampler.options.environment.job_tags or []) if service is not None else []

    def send(self, tag: str, pub: SamplerPubLike) -> Any:
        """The job that runs a PUB, submitted once under this tag.

        After an error that leaves open whether the job arrived, it is looked for before another try.
        """
        if self.service is not None:
            self.sampler.options.environment.job_tags = [*self._tags, tag]
        for attempt in range(TRIES):
            try:
                return self.sampler.run([pub])
            except Exception as error:
                failure = error
            last = self._judge(failure, "the submission")  # out here, so that no exception holds the other one
            self.sleep(2.0**attempt)
            if self.service is not None and (handle := self.look_for(tag, since=_now())) is not None:
                return handle
        raise RunStopped(f"the submission failed {TRIES} times ({last}); run again to resume")

    def look_for(self, tag: str, since: str) -> Any:
        """The job with this tag, or ``None`` if the service still knows none a while after ``since``."""
        age_s = (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()
        if not (found := self.ask("the list of jobs", lambda: self.service.jobs(job_tags=[tag], limit=2))):
            self.sleep(max(0.0, SETTLE_S - age_s))
            found = self.ask("the list of jobs", lambda: self.service.jobs(job_tags=[tag], limit=2))
        if len(found) > 1:
            raise RunStopped(
                f"the service knows {len(found)} jobs with the tag {tag}; cancel all but one and run again"
            )
        return found[0] if found else None

    def ask(self, what: str, question: Callable[[], Any]) -> Any:
        """The answer to a question, asked again after errors that pass."""
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
            raise RunStopped(
                f"{what}: the service refused the credentials; save the account anew and run again to resume"
            )
        if status == 429 or status >= 500 or (status < 0 and _no_answer(error)):
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
    """Status code of a response that an error, or one that it was made of, tells of; -1 if none does."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        for known in (getattr(cause, "status_code", None), getattr(response, "status_code", None)):
            if known is not None and known > 0:
                return known
        if found := re.search(r"\b([45]\d\d) (?:Client|Server) Error", str(cause)):
            return int(found[1])
    return -1


def _no_answer(error: Exception) -> bool:
    """Whether nothing came back, or not all of it.  IBM's client hides that in errors of its own, without a status."""
    return isinstance(error, OSError) or any(isinstance(cause, RequestException) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was made of, what that was made of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
