import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector

from cua.quantum.engine import NoisyCircuit
from cua.quantum.mitigation import (
    depolarising_response,
    depolarising_strength,
    inverse_response,
    mitigate,
    readout_response,
)


def circuit(bits: list[int]) -> QuantumCircuit:
    """An entangled state with free angles, qubit j measured into ``bits[j]``."""
    n = len(bits)
    circuit, angles = QuantumCircuit(n, n), ParameterVector("angle", n)
    for qubit in range(n):
        circuit.sx(qubit)
        circuit.rz(angles[qubit], qubit)
        circuit.sx(qubit)
        if qubit:
            circuit.cz(qubit - 1, qubit)
            circuit.sx(qubit)
    circuit.measure(range(n), bits)
    return circuit


@pytest.mark.parametrize(
    ("place", "bits"),
    [((3,), None), ((0, 4), None), ((4, 0), [1, 0]), ((2, 4, 1), [0, 1, 2]), ((2, 4, 1), [1, 2, 0]),
     ((4, 3, 1, 0), [2, 0, 3, 1])],
    ids=str,
)  # fmt: skip
def test_readout_inversion_restores_the_probabilities_of_perfect_measurements(readout_only, place, bits):
    template = circuit(list(range(len(place))) if bits is None else bits)
    angles = np.random.default_rng(0).uniform(-3, 3, size=(1, 6, len(place)))
    noisy, ideal = (
        NoisyCircuit(template, noise, [place]).probabilities(angles)[0].numpy() for noise in (readout_only, None)
    )
    assert np.abs(noisy - ideal).max() > 0.02
    restored = mitigate(noisy, inverse_response(readout_response(readout_only, place, bits)))
    np.testing.assert_allclose(restored, ideal, rtol=0, atol=1e-13)


def test_readout_response_by_hand(readout_only):
    one, other = readout_only.assignment_matrix(1), readout_only.assignment_matrix(3)
    response = readout_response(readout_only, (1, 3))
    np.testing.assert_allclose(response, np.kron(other, one), atol=1e-15)
    np.testing.assert_allclose(readout_response(readout_only, (1, 3), [1, 0]), np.kron(one, other), atol=1e-15)
    np.testing.assert_allclose(response.sum(0), 1)
    assert response[1, 0] == pytest.approx(0.03 * (1 - 0.07))  # seen 01 for 00: qubit 1 flips, qubit 3 does not


@pytest.mark.parametrize("planted", [-0.01, 0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("size", [2, 4, 16])
def test_a_planted_strength_is_found(size, planted):
    ideal = np.random.default_rng(0).dirichlet(np.ones(size), 50)
    noisy = (1 - planted) * ideal + planted / size
    assert depolarising_strength(noisy, ideal) == pytest.approx(planted, abs=1e-13)


def test_the_strength_is_the_least_squares_fit():
    rng = np.random.default_rng(1)
    ideal = rng.dirichlet(np.ones(4), 50)
    noisy = 0.8 * ideal + 0.2 * rng.dirichlet(np.ones(4), 50)
    found = depolarising_strength(noisy, ideal)

    def error(s):
        return ((noisy - (1 - s) * ideal - s / 4) ** 2).sum()

    assert error(found) < min(error(found - 1e-3), error(found + 1e-3))


def test_depolarising_is_undone():
    p = np.random.default_rng(0).dirichlet(np.ones(4), 20)
    response = depolarising_response(0.3, 4)
    np.testing.assert_allclose(response.sum(0), 1)
    noisy = p @ response.T
    np.testing.assert_allclose(noisy, 0.7 * p + 0.3 / 4)
    np.testing.assert_allclose(mitigate(noisy, inverse_response(response)), p, atol=1e-14)


def test_totals_are_kept_and_negatives_are_clipped():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 30, size=(200, 3, 4)) * rng.integers(0, 2, size=(200, 3, 4))
    counts[0] = 0
    responses = np.stack([depolarising_response(s, 4) for s in (0.1, 0.4, 0.6)])
    plain = np.stack([counts[:, i] @ np.linalg.inv(responses[i]).T for i in range(3)], 1)
    assert (plain < -1).any()
    restored = mitigate(counts, inverse_response(responses))
    assert restored.min() >= 0
    np.testing.assert_allclose(restored.sum(-1), counts.sum(-1), atol=1e-10)
    assert not restored[0].any()
    clipped = np.clip(plain, 0, None)
    np.testing.assert_allclose(restored[1:] * clipped[1:].sum(-1, keepdims=True),
                               clipped[1:] * counts[1:].sum(-1, keepdims=True), atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("strength", [1.0, 1 - 1e-8, 1.2], ids=["lost", "nearly", "turned over"])
def test_a_signal_that_is_lost_is_refused(strength):
    responses = np.stack([np.eye(4), depolarising_response(strength, 4)])
    with pytest.raises(ValueError, match=r"response matrix 1, smallest eigenvalue .*no signal is left"):
        inverse_response(responses)
    with pytest.raises(ValueError, match="response smallest eigenvalue"):
        inverse_response(responses[1])


def test_depolarisation_of_uniform_outcomes_only_cannot_be_seen():
    uniform = np.full((5, 4), 0.25)
    with pytest.raises(ValueError, match="every ideal distribution is uniform"):
        depolarising_strength(uniform, uniform)
