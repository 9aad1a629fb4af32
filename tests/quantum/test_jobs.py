import json
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.transpiler import CouplingMap
from qiskit_ibm_runtime.api.exceptions import RequestsApiError
from qiskit_ibm_runtime.exceptions import IBMNotAuthorizedError, IBMRuntimeError
from qiskit_ibm_runtime.executor_sampler import Sampler
from scipy.stats import chi2

import cua
from cua.quantum import jobs as jobs_module
from cua.quantum import journal as journal_module
from cua.quantum.jobs import JobRunner, RunStopped
from cua.quantum.journal import Journal, JournalError, read_events
from cua.quantum.noise import DeviceNoise
from cua.quantum.packing import PackedCircuit
from cua.quantum.sampler import EngineSampler
from tests.quantum.fake_service import TOKEN, FakeSampler, FakeService

SHOTS = 64


@pytest.fixture(scope="module")
def work():
    """Seven qubits in a line, three pairs, two rounds; nine blocks, so two circuits a slice; three slices."""
    line = CouplingMap.from_line(7)
    backend = GenericBackendV2(7, ["id", "x", "sx", "rz", "cz", "reset"], coupling_map=line, seed=0)
    packed = PackedCircuit(backend, [(0, 1), (2, 3), (5, 4)], rounds=2)
    rng = np.random.default_rng(0)
    q = cua.cayley(cua.skew(torch.from_numpy(rng.normal(0, 0.3, (9, 6))), 4)).numpy()
    return backend, packed, rng.normal(size=(3, 9, 4)), [q, q.swapaxes(1, 2)]


def runner(work, folder: Path, service: FakeService | None, **options) -> JobRunner:
    backend, packed, _, _ = work
    options = {"max_executions": 5 * SHOTS, "sleep": lambda seconds: None} | options
    return JobRunner(packed, backend, FakeSampler(service), folder / "run", SHOTS, service, **options)


def run(work, folder: Path, service: FakeService, **options) -> np.ndarray:
    """Two calls of two settings each: six rows, hence twelve in all, five a job."""
    _, _, x, settings = work
    jobs = runner(work, folder, service, **options)
    try:
        return np.stack([jobs.measure(x, settings)[1], jobs.measure(-2 * x, settings)[1]])
    finally:
        jobs.journal.close()


@pytest.fixture(scope="module")
def undisturbed(work, tmp_path_factory) -> np.ndarray:
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(work, folder, FakeService(folder / "server"))


def n_jobs(folder: Path) -> int:
    return len(list((folder / "server").glob("*.json")))


def once(operation: str, happening: Exception | str, number: int = 1):
    """A fault at the n-th time that an operation happens."""
    left = [number]

    def fault(what: str) -> str | None:
        if what == operation:
            left[0] -= 1
            if left[0] == 0:
                if isinstance(happening, Exception):
                    raise happening
                return happening
        return None

    return fault


def test_counts_are_those_of_the_blocks(work, undisturbed):
    _, _, x, settings = work
    assert undisturbed.shape == (2, 2, 3, 9, 4)
    assert (undisturbed.sum(-1) == SHOTS).all()
    for counts, q in zip(undisturbed[0], settings, strict=True):
        p = np.einsum("nij,tnj->tni", q, x) ** 2 / (x**2).sum(-1, keepdims=True)
        pulls = ((counts - SHOTS * p) / np.sqrt(SHOTS * p * (1 - p)))[p * (1 - p) > 0.1]
        assert np.abs(pulls).max() < 4
        assert 0.7 < pulls.std() < 1.3


def test_a_run_is_split_into_jobs_of_the_allowed_size_and_recorded(work, tmp_path, undisturbed):
    assert np.array_equal(run(work, tmp_path, FakeService(tmp_path / "server")), undisturbed)
    events = read_events(tmp_path / "run")
    assert [line["rows"] for line in events if line["event"] == "submit"] == [5, 5, 2] * 2
    assert n_jobs(tmp_path) == 6
    assert [line["event"] for line in events][:5] == ["header", "opened", "call", "submit", "submitted"]
    ids = {line["id"] for line in events if line["event"] == "submitted"}
    assert ids == {path.stem for path in (tmp_path / "server").glob("*.json")}


def test_a_finished_run_is_read_and_not_run_again(work, tmp_path, undisturbed):
    run(work, tmp_path, FakeService(tmp_path / "server"))

    def fault(operation):
        raise AssertionError(f"{operation}: nothing is to be asked")

    assert np.array_equal(run(work, tmp_path, FakeService(tmp_path / "server", fault)), undisturbed)


TRANSIENT = [
    requests.ConnectionError("no route"),
    requests.Timeout("read timed out"),
    TimeoutError("timed out"),
    RequestsApiError("429 Client Error: Too Many Requests for url", 429),
    RequestsApiError("503 Server Error", 503),
    IBMRuntimeError("Failed to run program: '500 Server Error: Internal for url: https://x'"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: f"{type(error).__name__}-{str(error)[:12]}")
@pytest.mark.parametrize("operation", ["run", "ran", "result", "usage"])
@pytest.mark.parametrize("number", [1, 4])
def test_what_passes_is_tried_again(work, tmp_path, undisturbed, operation, error, number):
    service = FakeService(tmp_path / "server", once(operation, error, number))
    assert np.array_equal(run(work, tmp_path, service), undisturbed)
    assert n_jobs(tmp_path) == 6, "no job twice, also when the answer to a submission is lost"


def test_a_job_that_the_service_lists_late_is_not_sent_twice(work, tmp_path, undisturbed):
    slept = []

    class Late(FakeService):
        def jobs(self, job_tags, limit=10):
            return super().jobs(job_tags, limit) if sum(slept) >= jobs_module.SETTLE_S else []

    service = Late(tmp_path / "server", once("ran", requests.Timeout("read timed out")))
    assert np.array_equal(run(work, tmp_path, service, sleep=slept.append), undisturbed)
    assert n_jobs(tmp_path) == 6


@pytest.mark.parametrize("operation", ["run", "result", "usage", "job", "jobs"])
def test_a_service_that_stays_away_stops_the_run_and_a_later_one_goes_on(work, tmp_path, undisturbed, operation):
    if operation in ("job", "jobs"):  # asked for only if the run was interrupted before
        interrupt = "result" if operation == "job" else "ran"
        with pytest.raises(KeyboardInterrupt):
            run(work, tmp_path, FakeService(tmp_path / "server", lambda what: stop(what == interrupt)))
    service = FakeService(tmp_path / "server", lambda what: away(what == operation))
    with pytest.raises(RunStopped, match=r"run again to resume$"):
        run(work, tmp_path, service)
    assert np.array_equal(run(work, tmp_path, FakeService(tmp_path / "server")), undisturbed)
    assert n_jobs(tmp_path) == 6


def away(now: bool) -> None:
    if now:
        raise requests.ConnectionError("no route")


def stop(now: bool) -> None:
    if now:
        raise KeyboardInterrupt


@pytest.mark.parametrize("number", [1, 3, 6])
@pytest.mark.parametrize("how, reason", [
    ("error", "Error code 6000"), ("cancelled", "was cancelled"), ("partial", "of 320 shots|of 128 shots"), ("shots", "shots"),
])  # fmt: skip
def test_a_job_without_a_whole_result_is_sent_anew_by_the_next_run(work, tmp_path, undisturbed, how, reason, number):
    with pytest.raises(RunStopped, match=rf"^job \w+ .*({reason}).*; run again to send it anew$"):
        run(work, tmp_path, FakeService(tmp_path / "server", once("result", how, number)))
    assert np.array_equal(run(work, tmp_path, FakeService(tmp_path / "server")), undisturbed)
    assert n_jobs(tmp_path) == 7, "the failed one and the six"


def test_refused_credentials_are_not_told(work, tmp_path, undisturbed, caplog, capfd):
    error = IBMNotAuthorizedError(f"401 Client Error: token {TOKEN} expired")
    with pytest.raises(RunStopped, match="credentials.*run again to resume") as caught:
        run(work, tmp_path, FakeService(tmp_path / "server", once("result", error)))
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert np.array_equal(run(work, tmp_path, FakeService(tmp_path / "server")), undisturbed)
    assert n_jobs(tmp_path) == 6


@pytest.mark.parametrize("message", [f"bad header Bearer {TOKEN}", "https://x.y/?access_token=" + "a1" * 40])
@pytest.mark.parametrize("kind", [RuntimeError, requests.ConnectionError, IBMRuntimeError])
def test_a_planted_token_shows_nowhere(work, tmp_path, caplog, capfd, message, kind):
    secret = message.split()[-1][-40:]
    jobs = runner(work, tmp_path, FakeService(tmp_path / "server", lambda what: plant(what, kind(message))))
    with caplog.at_level("DEBUG"), pytest.raises(RunStopped) as caught:
        jobs.measure(work[2], work[3])
    jobs.journal.close()
    shown = [repr(jobs), str(vars(jobs)), repr(jobs.journal), str(caught.value), repr(caught.value), caplog.text]
    shown += capfd.readouterr()
    shown += [path.read_bytes().decode(errors="replace") for path in (tmp_path / "run").iterdir()]
    assert not any(secret in text for text in shown)
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def plant(what: str, error: Exception) -> None:
    if what == "result":
        raise error


@pytest.mark.parametrize("number", range(1, 40, 3))
def test_a_full_disk_stops_the_run_and_loses_nothing(work, tmp_path, undisturbed, monkeypatch, number):
    left, fsync = [number], os.fsync

    def full(descriptor):
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(journal_module.os, "fsync", full)
    with pytest.raises(JournalError, match="No space left on device; free some space"):
        run(work, tmp_path, FakeService(tmp_path / "server"))
    monkeypatch.undo()
    read_events(tmp_path / "run")
    assert np.array_equal(run(work, tmp_path, FakeService(tmp_path / "server")), undisturbed)
    assert n_jobs(tmp_path) == 6


def test_two_processes_on_one_journal(work, tmp_path):
    first = runner(work, tmp_path, FakeService(tmp_path / "server"))
    with pytest.raises(JournalError, match="in use by another process"):
        runner(work, tmp_path, FakeService(tmp_path / "server"))
    first.journal.close()
    runner(work, tmp_path, FakeService(tmp_path / "server")).journal.close()


def test_the_journal_of_another_run_is_refused(work, tmp_path):
    backend, packed, x, settings = work
    run(work, tmp_path, FakeService(tmp_path / "server"))
    with pytest.raises(JournalError, match=r"another run: shots differ \(shots: 64 there, 32 here\)"):
        JobRunner(packed, backend, FakeSampler(None), tmp_path / "run", 32)
    jobs = runner(work, tmp_path, FakeService(tmp_path / "server"))
    with pytest.raises(JournalError, match="call 0 .* other slices or blocks"):
        jobs.measure(1.1 * x, settings)


def test_no_more_is_spent_than_allowed(work, tmp_path):
    jobs = runner(work, tmp_path, FakeService(tmp_path / "server"), budget_s=1.0)
    with pytest.raises(RunStopped, match="of the budget of 1 s 0 s are spent: take fewer tokens"):
        jobs.measure(work[2], work[3])
    assert n_jobs(tmp_path) == 0


def test_killed_at_300_random_moments(work, tmp_path, undisturbed):
    """kill -9 before a random line of jobs.py, journal.py or the service, then on from there, in fresh processes."""
    files = {module.__file__ for module in (jobs_module, journal_module, sys.modules[FakeService.__module__])}

    def child(folder: Path, kill_at: int | None) -> int:
        """Run in a process of its own; returns its wait status."""
        if pid := os.fork():
            return os.waitpid(pid, 0)[1]
        lines = 0

        def trace(frame, event, _):
            nonlocal lines
            if frame.f_code.co_filename not in files:
                return None
            if event == "line":
                lines += 1
                if lines == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            counts = run(work, folder, FakeService(folder / "server"))
            sys.settrace(None)
            np.save(folder / "counts.npy", counts)
            (folder / "lines").write_text(str(lines))
            os._exit(0)
        except BaseException as error:
            (folder / "error").write_text(repr(error))
            os._exit(1)

    (tmp_path / "whole").mkdir()
    assert child(tmp_path / "whole", None) == 0
    n_lines = int((tmp_path / "whole" / "lines").read_text())
    assert n_lines > 300
    random.seed(0)
    for trial in range(300):
        folder = tmp_path / str(trial)
        folder.mkdir()
        kill_at = random.randrange(1, n_lines)
        assert child(folder, kill_at) == signal.SIGKILL, (folder / "error").read_text()
        events = read_events(folder / "run")
        assert child(folder, None) == 0, (folder / "error").read_text()
        assert read_events(folder / "run")[: len(events)] == events, "what was recorded stays"
        assert np.array_equal(np.load(folder / "counts.npy"), undisturbed), kill_at
        assert n_jobs(folder) == 6, f"killed at line {kill_at}: a job was sent twice or lost"


def test_ibms_sampler_in_local_mode(work, tmp_path):
    """The client's own path from a PUB to counts, on Aer; with perfect resets, as Aer has them."""
    backend, packed, x, settings = work
    shots, noise = 4096, DeviceNoise(backend)
    counts = []
    for name, sampler in (
        ("aer", Sampler(mode=backend, options={"simulator": {"seed_simulator": 0}})),
        ("engine", EngineSampler(noise, reset_errors=False)),
    ):
        with (jobs := JobRunner(packed, backend, sampler, tmp_path / name, shots)).journal:
            counts.append(np.stack(jobs.measure(x, settings)[1]))
    ours, theirs = counts
    assert (ours.sum(-1) == shots).all() and (theirs.sum(-1) == shots).all()
    statistic = ((ours - theirs) ** 2 / np.maximum(ours + theirs, 1)).sum(-1)
    assert (chi2.sf(statistic, 3) > 1e-3 / statistic.size).all()
    header = read_events(tmp_path / "aer")[0]
    assert header["sampler"] == "Sampler" and header["options"]["dynamical_decoupling"]["enable"] is False
