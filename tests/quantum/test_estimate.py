import numpy as np
import pytest
from qiskit.circuit.library import HGate
from qiskit.quantum_info import Operator, Statevector
from scipy.optimize import minimize
from scipy.stats import chisquare, multinomial

from cua.quantum.circuits import quaternion_product
from cua.quantum.estimate import (
    QUARTER_TURN,
    hadamard,
    sample,
    sign_constrained,
    sign_faithful,
    sign_faithful_by_qubit,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def problem(rotations, n: int, norm, seed: int = 0):
    """Random slices x, y = Q x, tr(Q)/4, and the probabilities of both settings."""
    x, q = np.random.default_rng(seed).normal(size=(n, 4)), rotations(n, norm=norm, seed=seed)
    y = np.einsum("nij,nj->ni", q, x)
    turned = quaternion_product([1 / np.sqrt(2), *[1 / np.sqrt(6)] * 3], y)
    square = (x**2).sum(-1, keepdims=True)
    return x, y, np.trace(q, axis1=1, axis2=2) / 4, y**2 / square, turned**2 / square


def squared_errors(estimate, x, y):
    return ((estimate - y) ** 2).sum(-1) / (x**2).sum(-1)


def test_the_second_setting_is_a_quaternion_of_a_quarter_turn(rng):
    y = rng.normal(size=(50, 4))
    r = [np.cos(np.pi / 4), *[np.sin(np.pi / 4) / np.sqrt(3)] * 3]
    np.testing.assert_allclose(y @ QUARTER_TURN.T, quaternion_product(r, y), atol=1e-14)
    np.testing.assert_allclose(QUARTER_TURN @ QUARTER_TURN.T, np.eye(4), atol=1e-15)
    assert np.linalg.det(QUARTER_TURN) == pytest.approx(1)


def confusion(turn, y):
    """Squared distance of the second setting's magnitudes for two sign patterns of y, over that of the vectors."""
    flips = [[-1, 1, 1, 1], [1, -1, 1, 1], [1, 1, -1, 1], [1, 1, 1, -1], [-1, -1, 1, 1], [-1, 1, -1, 1], [-1, 1, 1, -1]]
    ratios = []
    for flip in np.array(flips, dtype=float):
        same, turned = (y @ turn.T), (y * flip) @ turn.T
        seen = ((np.abs(same) - np.abs(turned)) ** 2).sum(-1)
        kept, lost = (y * (flip > 0)) ** 2, (y * (flip < 0)) ** 2
        ratios.append(seen / (4 * np.minimum(kept.sum(-1), lost.sum(-1))))
    return np.min(ratios, axis=0)


def test_no_two_sign_patterns_look_alike(rng):
    """The worst of many vectors, refined; with Hadamard gates it is zero."""
    y = rng.normal(size=(200_000, 4))
    assert confusion(QUARTER_TURN, y).min() > 0.02
    worst = y[np.argsort(confusion(QUARTER_TURN, y))[:5]]
    for start in worst:
        found = minimize(lambda v: confusion(QUARTER_TURN, v[None])[0], start, method="Nelder-Mead")
        assert found.fun > 0.02
    hadamard = np.kron([[1, 1], [1, -1]], [[1, 1], [1, -1]]) / 2
    assert confusion(hadamard, np.array([[0.5, -0.5, 0.8, 0.8]]))[0] < 1e-20


@pytest.mark.parametrize("y", [[0.5, -0.5, 0.8, 0.8], [1, 1, 1, -1], [-1, 1, 1, 1], [0.3, 0.3, 0.3, -0.3]], ids=str)
def test_signs_that_hadamard_gates_would_confuse_are_read(y, rotations, rng):
    """Many blocks that send some x there."""
    q = rotations(2000, norm=1.9)
    y = np.broadcast_to(y, (2000, 4)) / np.linalg.norm(y)
    x = np.einsum("nji,nj->ni", q, y)
    counts, turned = sample(y**2, 4096, rng), sample((y @ QUARTER_TURN.T) ** 2, 4096, rng)
    found = sign_faithful(x, counts, turned, np.trace(q, axis1=1, axis2=2) / 4)
    assert (np.sign(found) == np.sign(y)).all()


@pytest.mark.parametrize("shots", [1, 10, 4096])
def test_counts_are_multinomial(rng, shots):
    p, n = np.array([0.5, 0.3, 0.2, 0.0]), 200_000 if shots < 100 else 20_000
    counts = sample(np.broadcast_to(p, (n, 4)), shots, rng)
    assert counts.dtype.kind == "i"
    assert (counts.sum(-1) == shots).all()
    np.testing.assert_allclose(counts.mean(0), shots * p, atol=5 * np.sqrt(shots / 4 / n))
    np.testing.assert_allclose(np.cov(counts.T), shots * (np.diag(p) - np.outer(p, p)), atol=0.01 * shots)
    neighbours = np.corrcoef(counts[:-1, 0], counts[1:, 0])[0, 1]
    assert abs(neighbours) < 5 / np.sqrt(n)


def test_every_slice_has_its_own_probabilities(rng):
    p = np.eye(4)[[3, 0, 2]]
    np.testing.assert_array_equal(sample(p, 7, rng), 7 * p)


def test_rounding_below_zero_and_sums_other_than_one(rng):
    p = np.array([[-1e-17, 0.5, 0.5 + 1e-12, 0.0], [0.0, 3.0, 1.0, 0.0]])
    counts = sample(np.repeat(p, 10_000, 0), 10, rng)
    assert (counts.sum(-1) == 10).all()
    assert not counts[:, [0, 3]].any()
    assert counts[10_000:, 1].mean() == pytest.approx(7.5, abs=0.1)


def test_single_precision_probabilities(rng):
    """numpy's multinomial refuses sums that are one to 1e-7 only."""
    p = rng.dirichlet(np.ones(4), 1000).astype(np.float32)
    assert (sample(p, 100, rng).sum(-1) == 100).all()


def test_a_generator_fixes_the_counts():
    p = np.full((50, 4), 0.25)
    first, again, other = (sample(p, 100, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("shots", [0, -5])
def test_at_least_one_shot(rng, shots):
    with pytest.raises(ValueError, match=f"shots={shots}: at least one"):
        sample(np.full(4, 0.25), shots, rng)


@pytest.mark.parametrize("shots", [2.5, 1e19])
def test_a_whole_number_of_shots(rng, shots):
    with pytest.raises(ValueError, match="a whole number"):
        sample(np.full(4, 0.25), shots, rng)


@pytest.mark.parametrize(
    "p", [[0.0, 0, 0], [np.nan, 0.5, 0.5], [0.5, 0.5, np.nan], [np.inf, 1.0], [[0.5, 0.5], [0, 0]], []]
)
def test_what_is_no_probability_is_refused(rng, p):
    with pytest.raises(ValueError, match="each finite, and in every row one above zero"):
        sample(np.array(p), 100, rng)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("shots", [1, np.uint8(255), np.int32(2**31 - 1), 100.0])
def test_one_slice_is_sampled_like_a_row_of_many(n, shots):
    p = np.arange(1.0, n + 1) / np.arange(1.0, n + 1).sum()
    one, row = (sample(q, shots, np.random.default_rng(0)) for q in (p, p[None]))
    np.testing.assert_array_equal(one, row[0])
    assert one.sum() == int(shots)


@pytest.mark.parametrize("shots", [1, 2, 3, 6, 12])
def test_shots_are_distributed_as_a_multinomial(rng, shots):
    """All outcomes of few shots, by their probabilities; among them an impossible one."""
    p, n = np.array([0.15, 0.25, 0.0, 0.6]), 200_000
    counts = sample(np.broadcast_to(p, (n, 4)), shots, rng)
    assert (counts[:, 2] == 0).all()
    outcomes, found = np.unique(counts, axis=0, return_counts=True)
    expected = n * multinomial.pmf(outcomes, shots, p)
    assert expected.sum() == pytest.approx(n, rel=2e-3), "next to nothing is missing"
    often = expected > 10
    assert chisquare(found[often], expected[often] * found[often].sum() / expected[often].sum()).pvalue > 1e-3


@pytest.mark.parametrize("shots", [100, 4095, 8192])
def test_probabilities_rounded_otherwise_give_the_same_shots_but_for_a_few(rng, shots):
    """What another processor does; with numpy's multinomial nearly all later counts would be others."""
    p = rng.dirichlet(np.ones(4), 20_000)
    rounded = p * (1 + 1e-7 * rng.normal(size=p.shape))
    moved = np.abs(sample(p, shots, np.random.default_rng(1)) - sample(rounded, shots, np.random.default_rng(1)))
    assert moved.max() <= 2
    assert (moved > 0).any(-1).mean() < 0.01


@pytest.mark.parametrize("b", [2, 4, 8])
def test_sign_constrained_is_its_formula(rng, b):
    x, counts = rng.normal(size=(30, 5, b)), rng.integers(0, 50, size=(30, 5, b))
    expected = np.sign(x) * np.sqrt((x**2).sum(-1) / counts.sum(-1))[..., None] * np.sqrt(counts)
    np.testing.assert_allclose(sign_constrained(x, counts), expected, atol=1e-14)
    np.testing.assert_allclose(sign_constrained(x, 0.37 * counts), expected, atol=1e-14)  # frequencies


def test_sign_constrained_where_there_is_nothing():
    x = np.array([[0.0, 0.0, 0.0, 0.0], [0.0, -0.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    counts = np.array([[1, 2, 3, 4], [1, 1, 0, 2], [0, 0, 0, 0]])
    expected = [[0, 0, 0, 0], [2.5, -2.5, 0, 5 / np.sqrt(2)], [0, 0, 0, 0]]
    np.testing.assert_allclose(sign_constrained(x, counts), expected, atol=1e-15)


def test_bias_and_spread_of_magnitudes_from_counts(rng):
    p, shots = np.array([0.1, 0.2, 0.3, 0.4]), 400
    magnitudes = sign_constrained(np.full((400_000, 4), 0.5), sample(np.broadcast_to(p, (400_000, 4)), shots, rng))
    np.testing.assert_allclose(np.sqrt(p) - magnitudes.mean(0), (1 - p) / (8 * shots * np.sqrt(p)), rtol=0.15)
    np.testing.assert_allclose(magnitudes.std(0), np.sqrt((1 - p) / (4 * shots)), rtol=0.02)


@pytest.mark.parametrize("norm", [0.01, 0.5, 1.0, 1.9, 1.99])
def test_sign_faithful_is_exact_without_shot_noise(rotations, norm):
    x, y, overlap, p, p_h = problem(rotations, 5000, norm)
    for mean_overlap in overlap, 0.5:
        np.testing.assert_allclose(sign_faithful(x, 1e9 * p, 1e9 * p_h, mean_overlap), y, rtol=0, atol=1e-4)


def exact(x, y):
    """The estimate from exact probabilities."""
    square = (x**2).sum(-1, keepdims=True)
    square = np.where(square > 0, square, 1)
    return sign_faithful(x, 1e9 * y**2 / square, 1e9 * (y @ QUARTER_TURN.T) ** 2 / square)


def test_sign_faithful_with_exact_zeros():
    rows = np.concatenate([np.eye(4), QUARTER_TURN, [[1, 1, 0, 0], [1, 0, -1, 0], [0, 1, 0, -1], [1, -1, 1, 0]]])
    y = np.concatenate([rows, -rows])
    np.testing.assert_allclose(exact(y, y), y, rtol=0, atol=1e-4)
    near = y + 0.1
    near *= np.linalg.norm(y, axis=-1, keepdims=True) / np.linalg.norm(near, axis=-1, keepdims=True)
    np.testing.assert_allclose(exact(near, y), y, rtol=0, atol=1e-4)


def test_sign_faithful_near_zeros_and_near_ties(rng):
    y = rng.normal(size=(4000, 4)) * 10.0 ** rng.integers(-12, 1, size=(4000, 4))
    y[::3, :2] = y[::3, 1:3] * (1 + 1e-9)  # nearly equal components, so nearly zero ones in the other setting
    x = y + 0.1 * rng.normal(size=y.shape) * np.linalg.norm(y, axis=-1, keepdims=True)
    found, lengths = exact(x, y), np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), lengths, rtol=1e-12)
    direction = y / np.linalg.norm(y, axis=-1, keepdims=True)
    assert np.abs(found / lengths[:, None] - direction).max() < 1e-3


def test_sign_faithful_of_zero_slices(rng):
    x = np.zeros((3, 4))
    x[1] = [1.0, -2.0, 0.5, 3.0]
    found = sign_faithful(x, rng.integers(1, 9, size=(3, 4)), rng.integers(1, 9, size=(3, 4)))
    assert not found[[0, 2]].any()
    assert np.linalg.norm(found[1]) == pytest.approx(np.linalg.norm(x[1]))


@pytest.mark.parametrize("shots", [1, 2, 5, 50])
def test_sign_faithful_keeps_the_length_at_few_shots(rotations, rng, shots):
    x, _, overlap, p, p_h = problem(rotations, 2000, 1.9)
    found = sign_faithful(x, sample(p, shots, rng), sample(p_h, shots, rng), overlap)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-12)
    assert ((found * x).sum(-1) >= 0).all()


def test_sign_faithful_without_any_count(rng):
    x, nothing, something = rng.normal(size=(5, 4)), np.zeros((5, 4)), rng.integers(1, 9, size=(5, 4))
    assert not sign_faithful(x, nothing, nothing).any()
    for pair in (something, nothing), (nothing, something):
        assert np.isfinite(sign_faithful(x, *pair)).all()


def test_sign_faithful_is_each_slice_by_itself(rotations, rng):
    x, _, overlap, p, p_h = problem(rotations, 60, 1.5)
    counts, counts_h = sample(p, 100, rng), sample(p_h, 100, rng)
    together = sign_faithful(
        *(a.reshape(12, 5, 4) for a in (x, counts, counts_h)), mean_overlap=overlap.reshape(12, 5)
    ).reshape(60, 4)
    alone = [sign_faithful(*one) for one in zip(x, counts, counts_h, overlap, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-15)


def test_settings_count_in_proportion_to_their_shots(rotations, rng):
    x, y, overlap, p, p_h = problem(rotations, 20_000, 1.0)
    many, few = sample(p, 60_000, rng), sample(p_h, 3_000, rng)
    both = np.median(squared_errors(sign_faithful(x, many, few, overlap), x, y))
    equal = np.median(squared_errors(sign_faithful(x, many / 20, few, overlap), x, y))
    assert both < 0.8 * equal


@pytest.mark.parametrize(("shots", "shots_h"), [(6000, 200), (200, 6000)])
def test_both_settings_tell_the_signs(rotations, rng, shots, shots_h):
    """With the likelihood of one setting alone, wrong signs make the error of one of these cases 70 times the limit."""
    x, y, overlap, p, p_h = problem(rotations, 20_000, 1.0)
    found = sign_faithful(x, sample(p, shots, rng), sample(p_h, shots_h, rng), overlap)
    assert squared_errors(found, x, y).mean() < 20 * 3 / (4 * 6200)


def test_sign_faithful_at_8192_shots_beats_sign_constrained_a_hundredfold(rotations, rng):
    norms = rng.uniform(0, 1.9, size=20_000)
    x, y, overlap, p, p_h = problem(rotations, 20_000, norms)
    faithful = squared_errors(sign_faithful(x, sample(p, 4096, rng), sample(p_h, 4096, rng), overlap), x, y)
    constrained = squared_errors(sign_constrained(x, sample(p, 8192, rng)), x, y)
    assert 100 * faithful.mean() < constrained.mean()


@pytest.mark.parametrize("norm", [0.4, 1.0, 1.9])
def test_sign_faithful_reaches_the_quantum_limit(rotations, rng, norm):
    """On average over all slices, rare wrong signs included."""
    shots = 2**15
    x, y, overlap, p, p_h = problem(rotations, 100_000, norm)
    found = sign_faithful(x, sample(p, shots // 2, rng), sample(p_h, shots // 2, rng), overlap)
    assert 0.97 < squared_errors(found, x, y).mean() / (3 / (4 * shots)) < 1.1


@pytest.mark.parametrize(("norm", "wrong"), [(0.4, 0.0), (1.9, 0.99)])
def test_the_prior_helps_at_few_shots(rotations, rng, norm, wrong):
    x, y, overlap, p, p_h = problem(rotations, 20_000, norm)
    counts, counts_h = sample(p, 32, rng), sample(p_h, 32, rng)
    right = squared_errors(sign_faithful(x, counts, counts_h, overlap), x, y).mean()
    assert 1.3 * right < squared_errors(sign_faithful(x, counts, counts_h, wrong), x, y).mean()


@pytest.mark.parametrize("b", [2, 8, 64])
def test_hadamard_is_the_gate_on_one_qubit(b, rng):
    y = rng.normal(size=b)
    state = Statevector(y / np.linalg.norm(y))
    for qubit in range(b.bit_length() - 1):
        expected = state.evolve(Operator(HGate()), [qubit]).data.real * np.linalg.norm(y)
        np.testing.assert_allclose(hadamard(b, qubit) @ y, expected, atol=1e-12)


def by_qubit(q, x, shots, rng):
    """Outputs of one block, and its counts in all n + 1 settings; frequencies without noise if ``shots`` is None."""
    b = x.shape[-1]
    y = x @ q.T
    settings = [np.eye(b), *(hadamard(b, k) for k in range(b.bit_length() - 1))]
    p = np.stack([(y @ turn) ** 2 / (x**2).sum(-1, keepdims=True) for turn in settings])
    return y, p if shots is None else sample(p, shots // len(settings), rng)


@pytest.mark.parametrize("b", [2, 4, 8, 16, 32, 64])
def test_signs_by_qubit_are_exact_without_shot_noise(rotations, rng, b):
    x = rng.normal(size=(200, b))
    y, counts = by_qubit(rotations(1, b=b, norm=1.9)[0], x, None, rng)
    np.testing.assert_allclose(sign_faithful_by_qubit(x, counts), y, atol=1e-6)


def test_signs_by_qubit_with_zeros_that_leave_the_rest_connected():
    y = np.array([0.0, 0.5, -0.7, 0.2, 0.0, 0.1, 0.4, -0.3])
    _, counts = by_qubit(np.eye(8), y[None], None, None)
    np.testing.assert_allclose(sign_faithful_by_qubit(y[None], counts)[0], y, atol=1e-7)


@pytest.mark.parametrize("b", [2, 4, 8, 16, 32, 64])
def test_signs_by_qubit_come_near_the_quantum_limit(rotations, rng, b):
    """(b - 1)/(4 shots), with 65,536 shots in all settings together."""
    x, shots = rng.normal(size=(500, b)), 65536
    y, counts = by_qubit(rotations(1, b=b, norm=1.0)[0], x, shots, rng)
    limit = (b - 1) / (4 * shots)
    error = squared_errors(sign_faithful_by_qubit(x, counts), x, y).mean()
    assert 0.85 * limit < error < 1.2 * limit


@pytest.mark.parametrize("shots", [7, 70, 700])
def test_signs_by_qubit_keep_the_length_at_few_shots(rotations, rng, shots):
    x = rng.normal(size=(50, 64)) * 1e-3
    _, counts = by_qubit(rotations(1, b=64, norm=1.0)[0], x, shots, rng)
    estimate = sign_faithful_by_qubit(x, counts)
    np.testing.assert_allclose((estimate**2).sum(-1), (x**2).sum(-1))
    assert ((estimate * x).sum(-1) >= 0).all()


def test_signs_by_qubit_of_nothing():
    x = np.ones((3, 8))
    assert not sign_faithful_by_qubit(np.zeros((3, 8)), np.ones((4, 3, 8))).any()
    assert not sign_faithful_by_qubit(x, np.zeros((4, 3, 8))).any()


@pytest.mark.parametrize(("b", "settings"), [(6, 3), (8, 3), (8, 5)])
def test_signs_by_qubit_refuse_what_does_not_fit(b, settings):
    with pytest.raises(ValueError, match="power of two"):
        sign_faithful_by_qubit(np.ones((5, b)), np.ones((settings, 5, b)))
