import numpy as np
import pytest

from cua.quantum.layout import disjoint_paths
from cua.quantum.packing import PackedCircuit
from cua.quantum.plan import JOB_OVERHEAD_S, DryRun, Plan, per_job

PAPER_S_PER_TOKEN = (4 * 3600 + 24 * 60) / 83  # a sequence of 83 tokens in 4 h 24 min, overheads included


@pytest.fixture(scope="module")
def packings(marrakesh):
    pairs = disjoint_paths(marrakesh, 2)
    return {rounds: PackedCircuit(marrakesh, pairs, rounds) for rounds in (1, 3, 17)}


def seconds_by_hand(device, packed: PackedCircuit) -> float:
    """Four SX deep, two CZ deep, a measurement; a reset before each round; all pairs wait for the slowest."""
    target = device.target
    used = {qubit for pair in packed.pairs for qubit in pair}
    longest = {
        name: max(p.duration for qubits, p in target[name].items() if set(qubits) <= used)
        for name in ("sx", "cz", "measure", "reset")
    }
    one = 4 * longest["sx"] + 2 * longest["cz"] + longest["measure"]
    resets = 1 + (packed.rounds - 1) * packed.resets
    return packed.rounds * one + resets * longest["reset"] + device.default_rep_delay


@pytest.mark.parametrize("rounds", [1, 3, 17])
def test_a_shot_takes_the_devices_own_times(marrakesh, packings, rounds):
    assert packings[rounds].shot_s() == pytest.approx(seconds_by_hand(marrakesh, packings[rounds]), abs=1e-7)
    assert packings[rounds].shot_s(1e-5) == pytest.approx(packings[rounds].shot_s() - 24e-5)


def test_more_resets_take_longer(marrakesh, packings):
    twice = PackedCircuit(marrakesh, packings[3].pairs, 3, resets=2)
    assert twice.shot_s() == pytest.approx(seconds_by_hand(marrakesh, twice), abs=1e-7)


@pytest.mark.parametrize(("rounds", "tokens", "settings"), [(1, 5, 2), (3, 5, 2), (17, 1, 1)])
def test_circuits_jobs_and_seconds_by_their_definition(packings, rounds, tokens, settings):
    packed = packings[rounds]
    plan = Plan.of(packed, n_blocks=150, tokens=tokens, shots=4096, settings=settings, max_executions=20_000)
    per_token = {1: 3, 3: 1, 17: 1}[rounds]  # 63 pairs, 189 slots, 1,071 slots
    assert plan.circuits == settings * tokens * per_token
    assert plan.jobs == -(-plan.circuits // 4)
    assert plan.qpu_s == pytest.approx(JOB_OVERHEAD_S * plan.jobs + plan.circuits * 4096 * packed.shot_s())


def test_a_token_of_llama_in_five_seconds(packings):
    """1,024 blocks, 8,192 shots: as in the paper's run, which took 191 s a token."""
    plan = Plan.of(packings[17], n_blocks=1024, tokens=1, shots=8192, settings=1)
    assert packings[17].n_slots >= 1024
    assert plan.circuits == 1
    assert plan.qpu_s < 5 < PAPER_S_PER_TOKEN / 35
    halves = Plan.of(packings[17], n_blocks=1024, tokens=1, shots=4096, settings=2)  # signs read, in as many shots
    assert halves.qpu_s == pytest.approx(plan.qpu_s)


def test_a_token_of_llama_in_five_seconds_on_good_pairs_only(marrakesh):
    """Fewer pairs, more rounds: the wait between two shots is most of the time."""
    packed = PackedCircuit(marrakesh, disjoint_paths(marrakesh, 2, cutoff=5), rounds=19)
    assert packed.n_slots >= 1024
    assert Plan.of(packed, n_blocks=1024, tokens=1, shots=8192, settings=1).qpu_s < 5


def test_the_papers_circuits_are_those_of_64_pairs():
    """83 tokens, 1,024 blocks: 1,328 circuits if 64 blocks run side by side."""
    assert 83 * -(-1024 // 64) == 1328


def test_between_ibms_quick_formula_and_the_papers_run(packings):
    """IBM's rule of thumb is 2 s + 0.35 ms x executions, for circuits of up to 100 microseconds; the paper's run, with
    one job for each circuit and waits that no plan knows of, took longer than its plan."""
    for packed in packings.values():
        plan = Plan.of(packed, n_blocks=1024, tokens=83, shots=8192, settings=1, max_executions=10**9)
        quick = 2 + 0.00035 * plan.circuits * plan.shots
        assert 0.7 * quick < plan.qpu_s < quick
    paper = Plan(circuits=1328, shots=8192, jobs=1328, shot_s=packings[1].shot_s())
    assert 0.2 < paper.qpu_s / (83 * PAPER_S_PER_TOKEN) < 1


def room(message: str) -> tuple[int, int]:
    words = message.replace(",", "").split()
    return int(words[words.index("such") - 1]), int(words[words.index("shots", words.index("such")) - 1])


def test_what_fits_passes_and_what_does_not_is_refused_with_what_would(packings):
    plan = Plan.of(packings[3], n_blocks=144, tokens=64, shots=4096)
    plan.check(plan.qpu_s + 0.01)
    with pytest.raises(ValueError, match=r"128 circuits x 4,096 shots, 1 job: 141\.9 s.*budget of 60 s"):
        plan.check(60.0)
    with pytest.raises(ValueError, match=r"10 s are spent, and there is room for (\d+) such circuits") as caught:
        plan.check(70.0, spent_s=10.0)
    circuits, shots = room(str(caught.value))
    Plan(circuits, 4096, 1, plan.shot_s).check(60.0)
    Plan(128, shots, 1, plan.shot_s).check(60.0)
    with pytest.raises(ValueError, match="room for"):
        Plan(circuits + 1, 4096, 1, plan.shot_s).check(60.0)
    with pytest.raises(ValueError, match="room for"):
        Plan(128, shots + 1, 1, plan.shot_s).check(60.0)
    with pytest.raises(ValueError, match="there is room for nothing of it"):
        plan.check(1.0)


@pytest.mark.parametrize(("options", "message"), [
    ({"tokens": 0}, "tokens=0: at least 1"), ({"shots": 0}, "shots=0"), ({"n_blocks": 0}, "n_blocks=0"),
    ({"shots": 10**8}, "shots=100000000: a job carries 1 to 10,000,000 executions"),
])  # fmt: skip
def test_a_plan_for_nothing_or_too_much_is_refused(packings, options, message):
    with pytest.raises(ValueError, match=message):
        Plan.of(packings[3], **{"n_blocks": 144, "tokens": 1, "shots": 100} | options)


def test_a_job_carries_ten_million_executions():
    assert per_job(4096) == 2441
    assert per_job(10_000_000) == 1


def test_a_dry_run_adds_up_the_passes_and_gives_exact_results(packings):
    dry, rng = DryRun(packings[3], shots=1000), np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(144, 4, 4)))[0]
    for tokens in (40, 1, 1):
        x = rng.normal(size=(tokens, 144, 4))
        x[0, 0] = 0
        same, (counts, turned) = dry.measure(x, [q, q.swapaxes(1, 2)])
        assert same is x
        length = (x**2).sum(-1, keepdims=True)
        p = np.einsum("nij,tnj->tni", q, x) ** 2 / np.where(length, length, 1)
        np.testing.assert_allclose(counts[:, 1:] / counts[:, 1:].sum(-1, keepdims=True), p[:, 1:], atol=1e-12)
        assert turned.shape == counts.shape
        assert np.isfinite(counts).all()
    with pytest.raises(ValueError, match="do not add up to one"):
        dry.plan + Plan.of(packings[1], 144, 1, 1000)
    assert DryRun(packings[3], 1000, max_executions=20_000).measure(x, [q, q])
    assert (dry.plan.circuits, dry.plan.jobs, dry.plan.shots) == (84, 3, 1000)
    assert "84 circuits x 1,000 shots, 3 jobs: 28.4 s of a QPU, 4.7 % of the Open Plan" in str(dry.plan)
