import numpy as np
import pytest
from qiskit import transpile
from qiskit.primitives import StatevectorSampler
from qiskit.quantum_info import Operator, Statevector
from qiskit_aer import AerSimulator
from qiskit_ibm_runtime.fake_provider import FakeFez, FakeKingston, FakeMarrakesh
from scipy.stats import special_ortho_group

from cua.quantum.circuits import (
    SUPERDENSE_OUTCOMES,
    preparation_angles,
    preparation_template,
    quaternion_product,
    so4_to_quaternions,
    superdense_angles,
    superdense_template,
    textbook_circuit,
    textbook_template,
)
from cua.quantum.estimate import QUARTER_TURN

AXES = [sign * axis for axis in np.eye(4) for sign in (1, -1)]
SLICES = {f"axis {i}": axis for i, axis in enumerate(AXES)} | {
    "positive": np.array([1.0, 2.0, 3.0, 4.0]),
    "negative": np.array([-1.0, -2.0, -3.0, -4.0]),
    "equal": np.ones(4),
    "two": np.array([0.0, 1.0, -1.0, 0.0]),
    "nearly an axis": np.array([1.0, 1e-9, 0.0, -1e-9]),
    "tiny": 1e-300 * np.array([3.0, -1.0, 2.0, 5.0]),
    "subnormal": np.array([5e-324, 0.0, -5e-324, 0.0]),
    "huge": 1e150 * np.array([3.0, -1.0, 2.0, 5.0]),
    "largest": 1.7e308 * np.array([1.0, -1.0, 0.5, 1.0]),
    "tiny and huge": np.array([1e-300, 1e150, -1e150, 1e-300]),
    "negative zeros": np.array([-0.0, -0.0, -2.0, -0.0]),
}
CYCLE = np.eye(4)[[1, 2, 0, 3]]
NORMS = (1e-9, 0.1, 1.0, 1.99, 10.0, 1e3)


def expected(x, q):
    """(Q x)_i^2 / |x|^2 without overflow."""
    x = x / np.abs(x).max()
    return (q @ x) ** 2 / (x @ x)


def probabilities(circuit, angles=()):
    """Of all outcomes, by Qiskit's statevector."""
    return Statevector(circuit.remove_final_measurements(inplace=False).assign_parameters(angles)).probabilities()


@pytest.fixture(scope="module")
def blocks(rotations) -> list[np.ndarray]:
    fixed = [np.eye(4), -np.eye(4), np.diag([1.0, -1.0, -1.0, 1.0]), CYCLE, QUARTER_TURN]
    return fixed + [rotations(norm=norm, seed=seed) for seed, norm in enumerate(NORMS)]


@pytest.mark.parametrize("x", SLICES.values(), ids=SLICES)
def test_superdense_probabilities_are_those_of_the_product(x, blocks):
    template = superdense_template()
    for q in blocks:
        found = probabilities(template, superdense_angles(x, q))[list(SUPERDENSE_OUTCOMES)]
        np.testing.assert_allclose(found, expected(x, q), rtol=0, atol=1e-12)


def test_superdense_probabilities_of_random_slices_and_rotations():
    template, rng = superdense_template(), np.random.default_rng(0)
    x, q = rng.normal(size=(200, 4)), special_ortho_group.rvs(4, size=200, random_state=0)
    for one_x, one_q, angles in zip(x, q, superdense_angles(x, q), strict=True):
        found = probabilities(template, angles)[list(SUPERDENSE_OUTCOMES)]
        np.testing.assert_allclose(found, expected(one_x, one_q), rtol=0, atol=1e-12)


def test_superdense_angles_broadcast(rotations):
    x, q = np.random.default_rng(1).normal(size=(5, 1, 4)), rotations(3)
    angles = superdense_angles(x, q)
    assert angles.shape == (5, 3, 6)
    for i, j in np.ndindex(5, 3):
        np.testing.assert_allclose(angles[i, j], superdense_angles(x[i, 0], q[j]), atol=1e-15)
    assert superdense_angles(np.ones((0, 4)), np.eye(4)).shape == (0, 6)


@pytest.mark.parametrize(("component", "bits"), [(0, "00"), (1, "01"), (2, "11"), (3, "10")])
def test_superdense_outcome_of_each_component(rotations, component, bits):
    q = rotations(norm=1.5)
    angles = superdense_angles(q[component], q)  # Q x is the axis `component`
    (result,) = StatevectorSampler(seed=0).run([(superdense_template(), angles)], shots=100).result()
    assert result.data.meas.get_counts() == {bits: 100}
    assert int(bits, 2) == SUPERDENSE_OUTCOMES[component]


def test_zero_slices_get_the_angles_of_the_first_axis(rotations):
    q = rotations(2)
    x = np.array([[[0.0, -0.0, 0.0, 0.0]], [[1.0, 2.0, 3.0, 4.0]]])
    angles = superdense_angles(x, q)
    np.testing.assert_array_equal(angles[0], superdense_angles(np.array([1.0, 0.0, 0.0, 0.0]), q))
    np.testing.assert_array_equal(angles[1], superdense_angles(x[1], q))


NOT_ROTATIONS = {
    "a reflection": np.diag([1.0, 1.0, 1.0, -1.0]),
    "a swap": np.eye(4)[[1, 0, 2, 3]],
    "a random reflection": special_ortho_group.rvs(4, random_state=0) * [1, 1, -1, 1],
    "scaled": 1.001 * np.eye(4),
    "sheared": np.eye(4) + 1e-4 * np.eye(4, k=1),
    "projection": np.diag([1.0, 0.0, 0.0, 0.0]),
    "one of a batch": np.stack([np.eye(4), np.eye(4), np.diag([-1.0, 1.0, 1.0, 1.0])]),
    "not a number": np.full((4, 4), np.nan),
}


@pytest.mark.parametrize("q", NOT_ROTATIONS.values(), ids=NOT_ROTATIONS)
def test_superdense_refuses_what_is_not_a_rotation(q):
    with pytest.raises(ValueError, match="not in SO"):
        superdense_angles(np.ones(4), q)


@pytest.mark.parametrize("device", [FakeFez, FakeMarrakesh, FakeKingston])
@pytest.mark.parametrize("level", [0, 3])
def test_the_isa_template(device, level):
    backend, template = device(), superdense_template()
    for pair in (0, 1), (21, 20), backend.coupling_map.get_edges()[-1]:
        isa = transpile(template, backend, initial_layout=list(pair), optimization_level=level, seed_transpiler=0)
        assert dict(isa.count_ops()) == {"sx": 8, "rz": 6, "cz": 2, "measure": 2}
        assert isa.depth() == template.depth() == 10
        assert list(isa.parameters) == list(template.parameters)
        used = [isa.find_bit(q).index for one in isa.data if one.name == "measure" for q in one.qubits]
        assert used == list(pair)


def test_the_isa_circuit_gives_the_same_outcomes(marrakesh, rotations):
    isa = transpile(superdense_template(), marrakesh, initial_layout=[21, 20], optimization_level=3)
    q = rotations(norm=1.5)
    bound = [isa.assign_parameters(superdense_angles(row, q)) for row in q]
    counts = AerSimulator().run(bound, shots=100).result().get_counts()
    assert counts == [{f"{outcome:02b}": 100} for outcome in SUPERDENSE_OUTCOMES]


def test_quaternions_multiply_like_their_matrices():
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(2, 20, 4))
    i, x, y, z = (Operator.from_label(label).data for label in "IXYZ")

    def matrices(quaternions):
        return np.einsum("nk,kij->nij", quaternions, np.stack([i, 1j * z, 1j * x, 1j * y]))

    np.testing.assert_allclose(matrices(quaternion_product(p, q)), matrices(p) @ matrices(q), atol=1e-14)


def test_a_rotation_is_two_quaternions(blocks):
    x, q = np.random.default_rng(0).normal(size=4), np.stack(blocks)
    left, right = so4_to_quaternions(q)
    np.testing.assert_allclose(quaternion_product(quaternion_product(left, x), right), q @ x, atol=1e-14)
    np.testing.assert_allclose(np.linalg.norm([left, right], axis=-1), 1, atol=1e-14)


def awkward_slices(b: int) -> np.ndarray:
    """Axes, sparse, negative, equal and random slices of length b."""
    rng = np.random.default_rng(b)
    dense = rng.normal(size=(12, b))
    sparse = dense * (rng.random((12, b)) < 0.5)
    sparse[:, 0] += ~sparse.any(1)
    return np.concatenate([np.eye(b), -np.eye(b), dense, -np.abs(dense[:2]), sparse, np.ones((1, b))])


@pytest.mark.parametrize("n_qubits", [1, 2, 3, 4, 5])
def test_preparation_is_the_slice_signs_and_all(n_qubits):
    template, slices = preparation_template(n_qubits), awkward_slices(2**n_qubits)
    assert template.num_parameters == 2**n_qubits - 1
    for x, angles in zip(slices, preparation_angles(slices), strict=True):
        state = Statevector(template.assign_parameters(angles)).data
        np.testing.assert_allclose(state * np.linalg.norm(x), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_qubits", [1, 2, 3, 4, 5])
def test_preparation_of_zero_slices_and_of_batches(n_qubits):
    b = 2**n_qubits
    x = np.random.default_rng(0).normal(size=(2, 3, b))
    x[1, 1] = 0
    angles = preparation_angles(x)
    assert angles.shape == (2, 3, b - 1)
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(angles[index], preparation_angles(x[index]), atol=1e-14)
    state = Statevector(preparation_template(n_qubits).assign_parameters(angles[1, 1])).data
    np.testing.assert_allclose(state, np.eye(b)[0], atol=1e-15)


@pytest.mark.parametrize("n_qubits", [1, 2, 3, 4])
def test_textbook_circuit_and_template_are_the_product(n_qubits):
    b = 2**n_qubits
    slices, q = awkward_slices(b)[:: b // 2], special_ortho_group.rvs(b, random_state=n_qubits)
    template = textbook_template(q)
    assert set(template.count_ops()) <= {"rz", "sx", "x", "cz", "measure", "barrier"}
    pairs = [[template.find_bit(q).index for q in one.qubits] for one in template.data if one.name == "cz"]
    assert all(abs(first - second) == 1 for first, second in pairs)
    for x, angles in zip(slices, preparation_angles(slices), strict=True):
        np.testing.assert_allclose(probabilities(textbook_circuit(x, q)), expected(x, q), rtol=0, atol=1e-12)
        by_template = clbit_probabilities(template.assign_parameters(angles))
        np.testing.assert_allclose(by_template, expected(x, q), rtol=0, atol=1e-12)


def clbit_probabilities(circuit):
    """Statevector probabilities in the order of classical bits: routing may leave qubits where they were not."""
    measured = {
        circuit.find_bit(one.clbits[0]).index: circuit.find_bit(one.qubits[0]).index
        for one in circuit.data
        if one.name == "measure"
    }
    state = Statevector(circuit.remove_final_measurements(inplace=False))
    return state.probabilities([measured[bit] for bit in sorted(measured)])


@pytest.mark.parametrize("norm", [1e-6, 1e-5, 1e-4])
def test_the_textbook_template_rounds_what_is_nearly_a_simpler_gate(rotations, norm):
    """Qiskit's synthesis takes a simpler gate within an infidelity of 1e-9, which moves probabilities by some 1e-5."""
    x, q = np.random.default_rng(0).normal(size=(20, 4)), rotations(norm=norm)
    template = textbook_template(q)
    for one, angles in zip(x, preparation_angles(x), strict=True):
        found = clbit_probabilities(template.assign_parameters(angles))
        np.testing.assert_allclose(found, expected(one, q), rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-300, 1e150, 1e308])
def test_textbook_circuit_of_tiny_and_huge_slices(scale):
    x, q = np.array([0.5, -0.25, 0.1, 0.7]), special_ortho_group.rvs(4, random_state=0)
    np.testing.assert_allclose(probabilities(textbook_circuit(scale * x, q)), expected(x, q), atol=1e-12)


def test_a_seed_fixes_the_textbook_template():
    q, angles = special_ortho_group.rvs(8, random_state=0), np.ones(7)
    first, again, other = (textbook_template(q, seed).assign_parameters(angles) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("x", "q", "message"),
    [
        (np.ones(3), np.eye(3), "block size 3: amplitude encoding needs a power of two"),
        (np.ones(1), np.eye(1), "block size 1"),
        (np.ones(4), np.eye(2), r"x has 4 components and Q the shape \(2, 2\)"),
        (np.zeros(4), np.eye(4), "a zero or infinite slice has no quantum state"),
        (np.array([1.0, np.inf]), np.eye(2), "a zero or infinite slice"),
        (np.array([1.0, np.nan]), np.eye(2), "a zero or infinite slice"),
        (np.ones(2), np.ones((2, 2)), "not unitary"),
    ],
    ids=str,
)
def test_textbook_circuit_refuses(x, q, message):
    with pytest.raises(ValueError, match=message):
        textbook_circuit(x, q)


@pytest.mark.parametrize("b", [1, 3, 6])
def test_only_powers_of_two_are_encoded(b):
    with pytest.raises(ValueError, match=f"block size {b}"):
        preparation_angles(np.ones((2, b)))
    with pytest.raises(ValueError, match=f"block size {b}"):
        textbook_template(np.eye(b))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_angles_of_what_no_circuit_prepares_are_refused(value):
    x = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, value, 0.0, 0.0]])
    for angles in (preparation_angles, lambda slices: superdense_angles(slices, np.eye(4))):
        with pytest.raises(ValueError, match=r"^a slice holds NaN or infinity; no circuit prepares it$"):
            angles(x)
