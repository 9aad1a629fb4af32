"""Our jobs through IBM's own client, over HTTP, to a stand-in for IBM's service on localhost.

The client waits for up to half a minute between its own tries of a request; here it does not wait.
"""

import os
import re
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import qiskit_ibm_runtime
from qiskit_aer import AerSimulator
from qiskit_ibm_runtime import QiskitRuntimeService, RuntimeJobV2, runtime_job_v2
from qiskit_ibm_runtime.api.session import PostForcelistRetry
from qiskit_ibm_runtime.executor import Executor
from qiskit_ibm_runtime.executor_sampler import Sampler
from qiskit_ibm_runtime.fake_provider import FakeFez, local_service

from cua.quantum.jobs import JobRunner
from cua.quantum.journal import read_events
from cua.quantum.layout import disjoint_paths
from cua.quantum.noise import DeviceNoise
from cua.quantum.packing import PackedCircuit
from cua.quantum.plan import Plan
from cua.quantum.sampler import EngineSampler
from cua.quantum.service import RunStopped
from tests.quantum.fake_ibm import API_KEY, CRN, CUT, DROP, FakeIBM

SHOTS = 64
ROWS = 3  # of a job; a run has four, hence two jobs
FAILED = {"status": "Failed", "reason": "Internal error", "reason_code": 6000}


@pytest.fixture(scope="module")
def work(marrakesh, rotations):
    """Five pairs, hence two bytes of outcomes, in two rounds; ten blocks, one circuit a slice; two slices, settings."""
    packed = PackedCircuit(marrakesh, disjoint_paths(marrakesh, 2)[:5], rounds=2)
    q = rotations(10)
    return packed, np.random.default_rng(0).normal(size=(2, 10, 4)), [q, q.swapaxes(1, 2)]


@pytest.fixture
def server(marrakesh, monkeypatch):
    monkeypatch.setattr(PostForcelistRetry, "get_backoff_time", lambda self: 0.0)
    monkeypatch.setenv("QISKIT_FUNCTIONS_EXPERIMENTAL", "1")  # the client does not look for instances in IBM Cloud
    monkeypatch.setenv("USAGE_DATA_OPT_OUT", "True")  # it does not look through the stack in each request
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FakeIBM(marrakesh) as server:
        monkeypatch.setenv("IAM_URL", server.iam_url)
        yield server


def connect(server: FakeIBM) -> QiskitRuntimeService:
    """A client of its own, as in a process of its own."""
    return QiskitRuntimeService(
        channel="ibm_quantum_platform", token=API_KEY, instance=CRN, url_resolver=lambda *_: server.url
    )


def runner(work, folder: Path, server: FakeIBM, **options) -> JobRunner:
    fault, server.fault = server.fault, lambda request, served: None
    backend = connect(server).backend("ibm_marrakesh")
    packed = PackedCircuit(backend, work[0].pairs, work[0].rounds)  # reads the calibration
    packed.circuit = work[0].circuit  # with the same parameters, to be compared
    server.fault = fault
    options = {"max_executions": ROWS * SHOTS, "progress": False, "sleep": lambda seconds: None} | options
    return JobRunner(packed, Sampler(mode=backend), folder / "run", SHOTS, **options)


def run(work, folder: Path, server: FakeIBM, **options) -> np.ndarray:
    with runner(work, folder, server, **options) as jobs:
        return np.stack(jobs.measure(*work[1:])[1])


@pytest.fixture(scope="module")
def undisturbed(work, marrakesh, tmp_path_factory) -> np.ndarray:
    """Counts of the server's sampler, asked directly."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with JobRunner(work[0], EngineSampler(None), folder, SHOTS, max_executions=ROWS * SHOTS) as jobs:
        return np.stack(jobs.measure(*work[1:])[1])


def times(number: int, request: str, status: int, served: bool = False) -> Callable[[str, bool], int | None]:
    """A fault at the first so many requests like this one."""
    left = [number]

    def fault(what: str, done: bool) -> int | None:
        if done is served and left[0] and re.fullmatch(request, what):
            left[0] -= 1
            return status
        return None

    return fault


def test_counts_come_through_ibms_client_bit_by_bit(work, server, tmp_path, undisturbed):
    assert np.array_equal(run(work, tmp_path, server), undisturbed)
    assert (undisturbed.sum(-1) == SHOTS).all()
    sent = [line for line in read_events(tmp_path / "run") if line["event"] == "submitted"]
    assert [line["id"] for line in sent] == [job.id for job in server.jobs]
    assert [[line["tag"]] for line in sent] == [job.body["tags"] for job in server.jobs]
    assert [len(job.program().items[0].circuit_arguments) for job in server.jobs] == [3, 1]


def test_usage_and_calibration_are_the_services(work, server, tmp_path):
    run(work, tmp_path, server)
    events = read_events(tmp_path / "run")
    told = [line for line in events if line["event"] == "counts"]
    assert [line["usage_s"] for line in told] == [1.5, 1.5]
    calibrated = [line["calibrated"] for line in events if "calibrated" in line]
    assert calibrated == [server.calibrations[0].isoformat()] * 3


def test_a_calibration_between_two_jobs(work, server, tmp_path):
    """The first job runs before, the second one after."""
    server.fault = lambda request, served: (
        server.calibrations.append(datetime.now(UTC)) if request == "POST /jobs" and served else None
    )
    with pytest.warns(UserWarning, match="ibm_marrakesh was calibrated anew.*The run goes on"):
        run(work, tmp_path, server)
    told = [line["calibrated"] for line in read_events(tmp_path / "run") if line["event"] == "counts"]
    assert told == [time.isoformat() for time in server.calibrations[:2]]


@pytest.mark.filterwarnings("error:.*calibrated anew")
def test_a_run_that_goes_on_in_another_time_zone(work, server, tmp_path, undisturbed, monkeypatch):
    """IBM's client tells times in that of the computer."""
    server.fault = times(1, "GET /jobs/.*/results", 403)
    with pytest.raises(RunStopped):
        run(work, tmp_path, server)
    try:
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("TZ", "Asia/Tokyo")
            time.tzset()
            assert np.array_equal(run(work, tmp_path, server), undisturbed)
    finally:
        time.tzset()


def test_a_packed_circuit_of_ibms_backend_is_that_of_its_calibration(work, server):
    backend = connect(server).backend("ibm_marrakesh")
    assert disjoint_paths(backend, 2)[:5] == work[0].pairs
    assert PackedCircuit(backend, work[0].pairs, rounds=2).shot_s() == work[0].shot_s()


def without_tags(body: dict) -> dict:
    """A request without its tags, which stand in two places, and the tags."""
    body = deepcopy(body)
    del body["tags"]
    del body["params"]["quantum_program"]["passthrough_data"]["post_processor"]["options"]["environment"]["job_tags"]
    return body


SETTINGS = {"execution": {"rep_delay": 1e-4}, "max_execution_time": 77, "environment": {"private": True}}


@pytest.mark.parametrize("options", [{}, SETTINGS])
def test_a_request_is_what_the_client_makes_of_the_same_pub(work, server, tmp_path, options):
    _, x, settings = work
    backend = connect(server).backend("ibm_marrakesh")
    packed = PackedCircuit(backend, work[0].pairs, work[0].rounds)
    sampler = Sampler(mode=backend, options=options)
    with JobRunner(packed, sampler, tmp_path / "run", SHOTS, progress=False) as jobs:
        jobs.measure(x, settings)
    rows = np.concatenate([packed.angles(x, q).reshape(2, -1) for q in settings])
    direct = Sampler(mode=backend, options=options)
    direct.options.environment.job_tags = ["direct"]
    direct.run([(packed.circuit, rows)], shots=SHOTS)
    ours, theirs = server.jobs
    assert without_tags(ours.body) == without_tags(theirs.body)
    assert theirs.body["tags"] == ["direct"]
    for job in (ours, theirs):
        program = job.program()
        assert program.items[0].circuit == packed.circuit
        assert np.array_equal(program.items[0].circuit_arguments, rows)
        assert program.shots == SHOTS


def test_the_clients_local_mode_gets_what_was_sent(work, server, tmp_path, marrakesh, monkeypatch):
    """Also once it has been through the service: same circuit, values and shots, same counts.

    On perfect qubits: Aer takes eight seconds to read the calibration of a whole device.
    """
    run(work, tmp_path, server)
    sent = server.jobs[1].program()
    got, run_program = [], local_service.run_quantum_program

    def spy(backend, program, options):
        got.append(program)
        assert backend is marrakesh
        return run_program(AerSimulator(), program, options)

    monkeypatch.setattr(local_service, "run_quantum_program", spy)
    packed, x, settings = work
    rows = packed.angles(x, settings[1]).reshape(2, -1)[1:]
    options = {"simulator": {"seed_simulator": 3}}
    local = Sampler(mode=marrakesh, options=options).run([(packed.circuit, rows, SHOTS)]).result()
    remote = Executor(mode=marrakesh, options=options).run(sent).result()
    assert len(got) == 2
    for program in got:
        (item,) = program.items
        assert item.circuit == packed.circuit
        assert np.array_equal(item.circuit_arguments, rows)
        assert program.shots == SHOTS
    assert np.array_equal(packed.counts(local[0].data), packed.counts(remote[0].data))


def test_twirled_measurements_come_back_as_they_were(work, server, tmp_path):
    packed, x, (q, _) = work
    shots, backend = 4000, connect(server).backend("ibm_marrakesh")
    twirling = {"enable_measure": True, "num_randomizations": 40, "shots_per_randomization": 100}
    sampler = Sampler(mode=backend, options={"twirling": twirling})
    packed = PackedCircuit(backend, packed.pairs)
    with JobRunner(packed, sampler, tmp_path / "run", shots, progress=False) as jobs:
        (counts,) = jobs.measure(x, [q])[1]
    (item,) = server.jobs[0].program().items
    assert item.shape == (40, 4)
    assert (counts.sum(-1) == shots).all()
    p = np.einsum("nij,tnj->tni", q, x) ** 2 / (x**2).sum(-1, keepdims=True)
    assert np.abs((counts - shots * p) / np.sqrt(shots * p * (1 - p) + 1)).max() < 4


@pytest.mark.parametrize(("twirling", "shots", "made"), [
    ({"enable_measure": True}, 1000, 1024),
    ({"enable_gates": True, "num_randomizations": 30}, 1000, 1020),
    ({"enable_measure": True, "num_randomizations": 2, "shots_per_randomization": 100}, 1000, 200),
])  # fmt: skip
def test_shots_that_the_client_would_change_are_refused(work, marrakesh, tmp_path, twirling, shots, made):
    packed = PackedCircuit(marrakesh, work[0].pairs)
    sampler = Sampler(mode=marrakesh, options={"twirling": twirling})
    with pytest.raises(ValueError, match=rf"shots={shots}: .*IBM's client makes it {made}; take those"):
        JobRunner(packed, sampler, tmp_path / "run", shots)
    assert not (tmp_path / "run").exists()
    JobRunner(packed, sampler, tmp_path / "run", made).journal.close()


def test_a_dry_run_asks_for_the_same_on_another_backend(work, server):
    packed, x, settings = work
    rows = packed.angles(x, settings[0]).reshape(2, -1)
    sampler = Sampler(mode=connect(server).backend("ibm_marrakesh"))
    for dry_run in (True, False):
        job = sampler.run([(packed.circuit, rows, SHOTS)], dry_run=dry_run)
        assert packed.counts(job.result()[0].data).shape == (2, 10, 4)
    dry, real = [job.body for job in server.jobs]
    assert (dry.pop("backend"), real.pop("backend")) == ("mock_marrakesh", "ibm_marrakesh")
    assert dry == real


RESULTS, METRICS, STATE = "GET /jobs/[^/]*/results", "GET /jobs/[^/]*/metrics", "GET /jobs/[^/]*"


@pytest.mark.parametrize(("status", "number"), [
    (429, 2), (503, 1), (500, 7), (DROP, 2),  # the client itself tries six times after 5xx
])  # fmt: skip
@pytest.mark.parametrize("request_", [
    "GET /instances/usage", "POST /jobs", STATE, RESULTS, METRICS, "GET /backends/.*/properties"
])  # fmt: skip
def test_what_passes_is_tried_again(work, server, tmp_path, undisturbed, request_, status, number):
    server.fault = times(number, request_, status)
    assert np.array_equal(run(work, tmp_path, server), undisturbed)
    assert server.requests.count("POST /jobs") == 2 + (number if request_ == "POST /jobs" else 0)
    assert len(server.jobs) == 2


@pytest.mark.parametrize("request_", [STATE, RESULTS, METRICS])
def test_an_answer_that_breaks_off_is_asked_for_again(work, server, tmp_path, undisturbed, request_):
    server.fault = times(2, request_, CUT, served=True)
    assert np.array_equal(run(work, tmp_path, server), undisturbed)
    assert len(server.jobs) == 2


@pytest.mark.parametrize("status", [429, 500, 503, DROP, CUT])
def test_a_job_whose_submission_is_not_answered_is_found(work, server, tmp_path, undisturbed, monkeypatch, status):
    """After 5xx the client posts anew by itself, as IBM says it may.  That is off here: a job was taken."""
    monkeypatch.setattr(PostForcelistRetry, "is_retry", lambda self, method, *_: False)
    server.fault = times(2, "POST /jobs", status, served=True)
    assert np.array_equal(run(work, tmp_path, server), undisturbed)
    assert len(server.jobs) == 2
    assert server.requests.count("POST /jobs") == 2


@pytest.mark.parametrize("request_", ["POST /jobs", STATE, RESULTS, METRICS])
def test_a_service_that_stays_away_stops_the_run_and_a_later_one_goes_on(work, server, tmp_path, undisturbed, request_):
    server.fault = times(-1, request_, 503)
    with pytest.raises(RunStopped, match=r"^[^\n]*6 (times|tries) [^\n]*503[^\n]*; run again to resume$"):
        run(work, tmp_path, server)
    server.fault = times(0, "", 0)
    assert np.array_equal(run(work, tmp_path, server), undisturbed)
    assert len(server.jobs) == 2


@pytest.mark.parametrize(("number", "state", "reason"), [
    (0, FAILED, "failed: .*Error code 6000; Internal error"),
    (1, FAILED, "failed: .*Error code 6000; Internal error"),
    (0, {"status": "Cancelled"}, "failed: .*Job was cancelled"),
    (0, {"status": "Cancelled", "reason": "Ran too long", "reason_code": 1305}, "failed: .*1305; Ran too long"),
])  # fmt: skip
def test_a_job_that_failed_is_sent_anew_by_the_next_run(work, server, tmp_path, undisturbed, number, state, reason):
    good = server.state
    server.state = lambda job: state if job == number else good(job)
    with pytest.raises(RunStopped, match=rf"^job {'.' * 20} {reason}[^\n]*; run again to send it anew$"):
        run(work, tmp_path, server)
    assert np.array_equal(run(work, tmp_path, server), undisturbed)
    ids = [line["id"] for line in read_events(tmp_path / "run") if line["event"] == "submitted"]
    assert ids == [job.id for job in server.jobs]
    assert len(ids) == 3


def test_a_job_that_ended_without_a_result_is_sent_anew_by_the_next_run(work, server, tmp_path, undisturbed):
    server.fault = times(1, RESULTS, 204)
    with pytest.raises(RunStopped, match=r"^job \w+ came back without a result; run again to send it anew$"):
        run(work, tmp_path, server)
    assert np.array_equal(run(work, tmp_path, server), undisturbed)
    assert len(server.jobs) == 3


def test_a_token_that_expires_is_renewed(work, server, tmp_path, undisturbed):
    server.lifetime_s = 5
    assert np.array_equal(run(work, tmp_path, server), undisturbed)
    assert server.requests.count("POST /iam/identity/token") > 10


@pytest.mark.parametrize("lifetime_s", [3600, 5])
@pytest.mark.parametrize("request_", ["POST /jobs", STATE, METRICS])
@pytest.mark.filterwarnings("ignore:Unable to retrieve IBM Cloud access token")
def test_credentials_that_are_no_longer_good_are_not_told(
    work, server, tmp_path, undisturbed, request_, lifetime_s, caplog, capfd
):
    """What the client itself warns of is not ours."""
    server.lifetime_s = lifetime_s
    server.fault = lambda what, served: setattr(server, "locked", server.locked or re.fullmatch(request_, what))
    jobs = runner(work, tmp_path, server)
    capfd.readouterr()
    refused = r"credentials.*run again to resume$"
    with caplog.at_level("DEBUG"), jobs, pytest.raises(RunStopped, match=refused) as caught:
        jobs.measure(*work[1:])
    shown = [repr(jobs), str(vars(jobs)), repr(jobs.journal), repr(jobs.client), str(caught.value), repr(caught.value)]
    shown += [caplog.text, *capfd.readouterr()]
    shown += [path.read_bytes().decode(errors="replace") for path in (tmp_path / "run").iterdir()]
    assert not any(secret in text for text in shown for secret in (API_KEY, CRN, "Bearer "))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    server.fault, server.locked = times(0, "", 0), False
    assert np.array_equal(run(work, tmp_path, server), undisturbed)
    assert len(server.jobs) == 2


def test_secrets_that_an_error_quotes_are_cut_out(work, server, tmp_path):
    jobs = runner(work, tmp_path, server)
    server.fault = times(1, RESULTS, 418)
    foreign = "0123456789abcdef" * 3
    server.quoted = f"{API_KEY} of {CRN} with {foreign}"
    with jobs, pytest.raises(RunStopped, match="418 Client Error") as caught:
        jobs.measure(*work[1:])
    assert not any(secret[:20] in str(caught.value) for secret in (API_KEY, CRN, foreign))
    assert "… of … with …" in str(caught.value)


def test_an_interrupted_run_is_resumed_by_another_client(work, server, tmp_path, undisturbed, monkeypatch):
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    good, server.state = server.state, lambda job: {"status": "Running"}
    with monkeypatch.context() as waiting:
        waiting.setattr(runtime_job_v2, "time", SimpleNamespace(time=time.time, sleep=interrupt))
        with pytest.raises(KeyboardInterrupt):
            run(work, tmp_path, server)
    before, server.state = len(server.requests), good
    assert len(server.jobs) == 2
    assert np.array_equal(run(work, tmp_path, server), undisturbed)
    assert len(server.jobs) == 2
    asked = {path.split("/")[2] for path in server.requests[before:] if path.startswith("GET /jobs/")}
    assert asked == {job.id for job in server.jobs}


def test_a_job_that_was_sent_but_not_recorded_is_found_by_another_client(
    work, server, tmp_path, undisturbed, monkeypatch
):
    def interrupt(self, **_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as sending:
        sending.setattr(RuntimeJobV2, "__init__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(work, tmp_path, server)
    assert len(server.jobs) == 1
    assert [line["event"] for line in read_events(tmp_path / "run")][-1] == "submit"
    assert np.array_equal(run(work, tmp_path, server), undisturbed)
    assert len(server.jobs) == 2


def test_a_finished_run_asks_for_nothing_but_the_backend(work, server, tmp_path, undisturbed):
    run(work, tmp_path, server)
    server.requests.clear()
    assert np.array_equal(run(work, tmp_path, server), undisturbed)
    assert not [request for request in server.requests if "/jobs" in request]


def test_the_steps_of_the_page_for_account_holders(server, tmp_path, monkeypatch, capsys):
    """Every line of Python on the page, twice: on the second day nothing is sent, and the same comes out."""
    page = (Path(__file__).parents[2] / "book" / "real_device.md").read_text()
    steps = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(steps) == 2
    monkeypatch.setenv("CUA_CACHE", os.environ.get("CUA_CACHE") or str(Path.home() / ".cache" / "cua"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(qiskit_ibm_runtime, "QiskitRuntimeService", lambda: connect(server))
    said = []
    for _ in range(2):
        exec("\n".join(steps), {})
        said.append(capsys.readouterr().out.splitlines())
    (job,) = server.jobs
    assert len(job.program().items[0].circuit_arguments) == 32, "as planned"
    assert (tmp_path / "cua-runs" / "first" / "journal.jsonl").exists()
    assert said[0] == said[1]
    plan, exact, device, spent = said[0]
    assert plan.startswith("32 circuits x 1,024 shots, 1 job: 10.9 s")
    assert [float(line.split("perplexity ")[1].split()[0]) for line in (exact, device)] == pytest.approx(
        [float(exact.split("perplexity ")[1].split()[0])] * 2, rel=0.05
    )
    assert exact.split("perplexity")[1] != device.split("perplexity")[1]
    assert spent == "2 s of the processor spent"


def test_the_table_of_the_page_follows_from_the_plan(marrakesh):
    page = (Path(__file__).parents[2] / "book" / "real_device.md").read_text()
    packed = PackedCircuit(marrakesh, disjoint_paths(marrakesh, 2, limit=48, cutoff=5), rounds=3, resets=2)
    rows = re.findall(r"\| (\d+) \| ([\d,]+) \| (\d+) \| (\d+) s( \||, as each new token is a job)", page)
    assert len(rows) == 5
    for tokens, shots, circuits, seconds, job_each in rows:
        plan = Plan.of(packed, 144, int(tokens), int(shots.replace(",", "")))
        jobs = 24 if "job" in job_each else 1
        assert plan.circuits == int(circuits)
        assert int(seconds) == round(replace(plan, jobs=jobs).qpu_s)


def test_a_rehearsal_on_a_real_backend_sends_nothing(work, server, tmp_path, undisturbed):
    """Our simulator with the device's own calibration."""
    _, x, settings = work
    backend = connect(server).backend("ibm_marrakesh")
    packed = PackedCircuit(backend, work[0].pairs, work[0].rounds)
    options = {"max_executions": ROWS * SHOTS, "progress": False}
    with JobRunner(packed, EngineSampler(None), tmp_path / "run", SHOTS, **options) as jobs:
        assert np.array_equal(np.stack(jobs.measure(x, settings)[1]), undisturbed)
    assert not server.jobs


def test_the_samplers_of_other_devices_and_of_old_are_refused(work, marrakesh, tmp_path):
    for sampler in (Sampler(mode=FakeFez()), EngineSampler(DeviceNoise(FakeFez()))):
        with pytest.raises(ValueError, match="the sampler is for fake_fez, the circuit for fake_marrakesh"):
            JobRunner(work[0], sampler, tmp_path / "run", SHOTS)
    with pytest.raises(ValueError, match=r"deprecated; take qiskit_ibm_runtime\.executor_sampler.Sampler"):
        JobRunner(work[0], object.__new__(qiskit_ibm_runtime.SamplerV2), tmp_path / "run", SHOTS)
    assert not (tmp_path / "run").exists()
