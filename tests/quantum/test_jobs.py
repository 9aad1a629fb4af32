import json
import os
import random
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import torch
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.transpiler import CouplingMap
from qiskit_ibm_runtime.api.exceptions import RequestsApiError
from qiskit_ibm_runtime.exceptions import IBMNotAuthorizedError, IBMRuntimeError
from qiskit_ibm_runtime.executor_sampler import Sampler
from qiskit_ibm_runtime.fake_provider import FakeMarrakesh
from scipy.stats import chi2

import cua
from cua.quantum import jobs as jobs_module
from cua.quantum import journal as journal_module
from cua.quantum import service as service_module
from cua.quantum.jobs import JobRunner
from cua.quantum.journal import JournalError, read_events
from cua.quantum.noise import DeviceNoise
from cua.quantum.packing import PackedCircuit
from cua.quantum.recorded import circuit_of, read_calls
from cua.quantum.sampler import EngineSampler
from cua.quantum.service import RunStopped
from tests.quantum.fake_service import TOKEN, FakeJob, FakeSampler, FakeService

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
    _backend, packed, _, _ = work
    options = {"max_executions": 5 * SHOTS, "sleep": lambda seconds: None} | options
    return JobRunner(packed, FakeSampler(service), folder / "run", SHOTS, service, **options)


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


def once(operation: str, happening: BaseException | str, number: int = 1):
    """A fault at the n-th time that an operation happens."""
    left = [number]

    def fault(what: str) -> str | None:
        if what == operation:
            left[0] -= 1
            if left[0] == 0:
                if isinstance(happening, BaseException):
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
            return super().jobs(job_tags, limit) if sum(slept) >= service_module.SETTLE_S else []

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
@pytest.mark.parametrize(("how", "reason"), [
    ("error", "Error code 6000"), ("cancelled", "was cancelled"), ("partial", "of 320 shots|of 128 shots"),
    ("shots", "shots"),
])  # fmt: skip
def test_a_job_without_a_whole_result_is_sent_anew_by_the_next_run(work, tmp_path, undisturbed, how, reason, number):
    with pytest.raises(RunStopped, match=rf"^job \w+ .*({reason}).*; run again to send it anew$"):
        run(work, tmp_path, FakeService(tmp_path / "server", once("result", how, number)))
    assert np.array_equal(run(work, tmp_path, FakeService(tmp_path / "server")), undisturbed)
    assert n_jobs(tmp_path) == 7, "the failed one and the six"


def test_refused_credentials_are_not_told(work, tmp_path, undisturbed, caplog, capfd):
    error = IBMNotAuthorizedError(f"401 Client Error: token {TOKEN} expired")
    with pytest.raises(RunStopped, match=r"credentials.*run again to resume") as caught:
        run(work, tmp_path, FakeService(tmp_path / "server", once("result", error)))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
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
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


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


OPEN = "import sys; from cua.quantum.journal import Journal; Journal(sys.argv[1], {})"


def test_two_processes_on_one_journal(work, tmp_path):
    first = runner(work, tmp_path, FakeService(tmp_path / "server"))
    with pytest.raises(JournalError, match="is in use, here or in another process; close it there"):
        runner(work, tmp_path, FakeService(tmp_path / "server"))
    before = read_events(tmp_path / "run")
    other = subprocess.run([sys.executable, "-c", OPEN, tmp_path / "run"], capture_output=True, text=True, check=False)
    assert "is in use, here or in another process" in other.stderr
    assert read_events(tmp_path / "run") == before
    first.journal.close()
    runner(work, tmp_path, FakeService(tmp_path / "server")).journal.close()


def test_a_closed_runner_sends_nothing(work, tmp_path):
    _, _, x, settings = work
    with runner(work, tmp_path, FakeService(tmp_path / "server")) as jobs:
        jobs.measure(x, settings)
    with pytest.raises(JournalError, match="is closed; make another one with the journal"), jobs:
        pass
    with pytest.raises(JournalError, match="is closed"):
        jobs.measure(x, settings)
    assert n_jobs(tmp_path) == 3


def test_the_journal_of_another_run_is_refused(work, tmp_path):
    _backend, packed, x, settings = work
    run(work, tmp_path, FakeService(tmp_path / "server"))
    with pytest.raises(JournalError, match=r"another run: shots differ \(shots: 64 there, 32 here\)"):
        JobRunner(packed, FakeSampler(None), tmp_path / "run", 32, max_executions=5 * SHOTS)
    jobs = runner(work, tmp_path, FakeService(tmp_path / "server"))
    with pytest.raises(JournalError, match=r"call 0 .* other slices or blocks"):
        jobs.measure(1.1 * x, settings)


def test_no_more_is_spent_than_allowed(work, tmp_path):
    _, packed, x, settings = work
    with (
        runner(work, tmp_path, FakeService(tmp_path / "server"), budget_s=1.0) as jobs,
        pytest.raises(
            RunStopped, match=r"this pass: 12 circuits.*of the budget of 1 s 0 s are spent.*room for nothing"
        ),
    ):
        jobs.measure(x, settings)
    assert n_jobs(tmp_path) == 0
    service = FakeService(tmp_path / "server")
    first, second = 3 * 2 + 12 * SHOTS * packed.shot_s(), 3 * 1.5  # the plan, and what the service counts
    with runner(work, tmp_path, service, budget_s=first + second - 0.01) as jobs:
        jobs.measure(x, settings)
        with pytest.raises(RunStopped, match=r"this pass: .*; of the budget of 11 s 4 s are spent, and there is room"):
            jobs.measure(x, settings)
    assert n_jobs(tmp_path) == 3
    with runner(work, tmp_path, service, budget_s=first + second + 0.01) as jobs:
        jobs.measure(x, settings)
        jobs.measure(x, settings)
    assert n_jobs(tmp_path) == 6


@pytest.mark.parametrize(("options", "message"), [
    ({"shots": 0}, "shots=0: a job carries 1 to 10,000,000"), ({"shots": 20_000_000}, "a job carries"),
    ({"shots": 10, "budget_s": 0}, "budget_s=0: seconds of a processor, more than 0"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_before_a_journal_is_begun(work, tmp_path, options, message):
    _backend, packed, _, _ = work
    with pytest.raises(ValueError, match=message):
        JobRunner(packed, FakeSampler(None), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_what_ibms_client_cannot_twirl_is_refused(work, tmp_path):
    backend, packed, _, _ = work
    sampler = Sampler(mode=backend, options={"twirling": {"enable_measure": True}})
    with pytest.raises(ValueError, match="a reset follows; switch it off, or take a PackedCircuit with rounds=1"):
        JobRunner(packed, sampler, tmp_path / "run", SHOTS)
    with JobRunner(PackedCircuit(backend, packed.pairs), sampler, tmp_path / "run", SHOTS) as jobs:
        assert jobs.twirls_measurements


def test_the_users_own_tags_stay(work, tmp_path):
    _, _, x, settings = work
    sampler = FakeSampler(FakeService(tmp_path / "server"))
    sampler.options.environment.job_tags = ["thesis"]
    with JobRunner(work[1], sampler, tmp_path / "run", SHOTS, sampler.service) as jobs:
        jobs.measure(x, settings)
        jobs.measure(-x, settings)
    for path in (tmp_path / "server").glob("*.json"):
        first, second = json.loads(path.read_text())["tags"]
        assert first == "thesis"
        assert second.startswith("cua-")


def test_usage_is_what_the_service_says_or_the_plan_while_it_says_nothing(work, tmp_path, monkeypatch):
    _, packed, x, settings = work
    for said, expected in ((1.5, 1.5), (0.0, 2 + 5 * SHOTS * packed.shot_s()), (None, 2 + 5 * SHOTS * packed.shot_s())):
        monkeypatch.setattr(FakeJob, "usage", lambda self, said=said: said)
        with runner(work, tmp_path / str(said), FakeService(tmp_path / "server")) as jobs:
            jobs.measure(x, settings)
            assert next(line["usage_s"] for line in jobs.journal.find("counts")) == pytest.approx(expected)
            assert jobs.spent_s() == sum(line["usage_s"] for line in jobs.journal.find("counts"))


def test_failed_jobs_count_towards_the_budget(work, tmp_path):
    with pytest.raises(RunStopped, match="run again"):
        run(work, tmp_path, FakeService(tmp_path / "server", once("result", "cancelled")))
    with runner(work, tmp_path, FakeService(tmp_path / "server")) as jobs:
        assert jobs.spent_s() == 1.5


def test_a_calibration_in_mid_run_is_told_and_recorded(work, tmp_path, undisturbed, monkeypatch):
    backend = FakeMarrakesh()
    before, after = backend.properties().last_update_date, datetime(2026, 1, 1, tzinfo=UTC)
    told = iter([before] * 4 + [after] * 99)
    monkeypatch.setattr(FakeJob, "properties", lambda self: SimpleNamespace(last_update_date=next(told)), raising=False)
    monkeypatch.setattr(work[0], "properties", backend.properties, raising=False)
    with pytest.warns(UserWarning, match="calibrated anew, on 2026-01-01.*The run goes on"):
        assert np.array_equal(run(work, tmp_path, FakeService(tmp_path / "server")), undisturbed)
    recorded = [line["calibrated"] for line in read_events(tmp_path / "run") if line["event"] == "counts"]
    assert recorded == [before.astimezone(UTC).isoformat()] * 4 + [after.isoformat()] * 2


def test_what_is_kept_is_computed_once(work, tmp_path):
    with runner(work, tmp_path, None) as jobs:
        first = jobs.keep("inverse", lambda: np.arange(3.0))
    with runner(work, tmp_path, None) as jobs:
        assert np.array_equal(jobs.keep("inverse", lambda: pytest.fail("computed again")), first)


def test_a_run_goes_on_with_the_pairs_it_began_with(work, tmp_path):
    backend, packed, _, _ = work
    assert circuit_of(tmp_path / "run", backend) is None
    runner(work, tmp_path, None).journal.close()
    again = circuit_of(tmp_path / "run", backend)
    assert (again.pairs, again.rounds, again.resets) == (packed.pairs, packed.rounds, packed.resets)
    assert again.circuit.count_ops() == packed.circuit.count_ops()
    with pytest.raises(ValueError, match="is the journal of a run on generic_backend_7q, not on fake_marrakesh"):
        circuit_of(tmp_path / "run", FakeMarrakesh())


READ = """
import sys
import numpy as np
from cua.quantum.recorded import read_calls
calls = read_calls(sys.argv[1])
np.savez(sys.argv[2], counts=np.stack([call["counts"] for call in calls]), x=calls[1]["slices"], q=calls[0]["blocks"])
"""


def test_another_process_decodes_the_journal(work, tmp_path, undisturbed):
    _, _, x, settings = work
    run(work, tmp_path, FakeService(tmp_path / "server"))
    subprocess.run([sys.executable, "-c", READ, tmp_path / "run", tmp_path / "out.npz"], check=True)
    with np.load(tmp_path / "out.npz") as out:
        assert np.array_equal(out["counts"], undisturbed)
        assert np.array_equal(out["x"], -2 * x)
        assert np.array_equal(out["q"], np.stack(settings))


def test_no_journal_to_read(tmp_path):
    with pytest.raises(JournalError, match="holds no journal"):
        read_calls(tmp_path / "mistyped")


def test_an_unfinished_pass_is_left_out_when_a_journal_is_read(work, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(work, tmp_path, FakeService(tmp_path / "server", once("result", KeyboardInterrupt(), 5)))
    assert len(read_calls(tmp_path / "run")) == 1


def test_killed_at_300_random_moments(work, tmp_path, undisturbed):
    """kill -9 before a random line of jobs.py, journal.py or the service, then on from there, in fresh processes."""
    mine = jobs_module, journal_module, service_module
    files = {module.__file__ for module in (*mine, sys.modules[FakeService.__module__])}

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
        with JobRunner(packed, sampler, tmp_path / name, shots) as jobs:
            counts.append(np.stack(jobs.measure(x, settings)[1]))
    ours, theirs = counts
    assert (ours.sum(-1) == shots).all()
    assert (theirs.sum(-1) == shots).all()
    statistic = ((ours - theirs) ** 2 / np.maximum(ours + theirs, 1)).sum(-1)
    assert (chi2.sf(statistic, 3) > 1e-3 / statistic.size).all()
    header = read_events(tmp_path / "aer")[0]
    assert header["sampler"] == "Sampler"
    assert header["options"]["dynamical_decoupling"]["enable"] is False
