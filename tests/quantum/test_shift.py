import numpy as np
import pytest
import torch

from cua.cayley import cayley, skew
from cua.quantum.circuits import SUPERDENSE_OUTCOMES, superdense_angles, superdense_template
from cua.quantum.engine import NoisyCircuit
from cua.quantum.plan import MANY
from cua.quantum.shift import GENERATORS, parameter_shift, shifted
from cua.readout import READOUTS


def frequencies(x, q):
    """Of the superdense circuit, by the engine: ``(tokens, n_blocks, 4)``."""
    angles = superdense_angles(x, q)
    p = NoisyCircuit(superdense_template()).probabilities(angles.reshape(1, -1, 6))
    return p.view(*angles.shape[:-1], 4).numpy()[..., list(SUPERDENSE_OUTCOMES)]


def problem(seed: int = 0, tokens: int = 7, n_blocks: int = 5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(tokens, n_blocks, 4)), 0.4 * rng.normal(size=(n_blocks, 6)), rng.normal(size=(tokens, 20))


def test_generators_are_three_orthogonal_units():
    np.testing.assert_array_equal(GENERATORS @ GENERATORS, np.broadcast_to(-np.eye(4), (3, 4, 4)))
    np.testing.assert_array_equal(np.einsum("jab,kab->jk", GENERATORS, GENERATORS), 4 * np.eye(3))


@pytest.mark.parametrize("readout", READOUTS)
def test_gradients_of_the_superdense_circuit_are_those_of_autograd(readout):
    """Of blocks and of slices; frequencies from the circuit, simulated, in every setting."""
    x, theta, weights = problem()
    slices, numbers = (torch.from_numpy(a).requires_grad_() for a in (x.reshape(len(x), -1), theta))
    blocks = cayley(skew(numbers, 4))
    y = READOUTS[readout](slices, blocks)
    loss = (torch.from_numpy(weights) * y.sin()).sum()  # anything that is not linear
    loss.backward()

    q = blocks.detach().numpy()
    signs = np.sign(y.detach().numpy().reshape(x.shape))
    read = signs * np.linalg.norm(x, axis=-1, keepdims=True) * np.sqrt(frequencies(x, q))
    np.testing.assert_allclose(read, y.detach().numpy().reshape(x.shape), atol=1e-7)
    outputs = torch.from_numpy(read).requires_grad_()
    (torch.from_numpy(weights) * outputs.flatten(1).sin()).sum().backward()
    counts = [MANY * frequencies(x, setting) for setting in shifted(q)]
    grad_x, grad_q = parameter_shift(x, q, read, outputs.grad.numpy(), counts)

    again = torch.from_numpy(theta).requires_grad_()
    cayley(skew(again, 4)).backward(torch.from_numpy(grad_q))  # the chain rule from Q to K is classical
    np.testing.assert_allclose(again.grad, numbers.grad, rtol=0, atol=1e-6)
    np.testing.assert_allclose(grad_x.reshape(len(x), -1), slices.grad, rtol=0, atol=1e-6)
    assert np.abs(numbers.grad.numpy()).max() > 0.1
    assert np.abs(slices.grad.numpy()).max() > 0.1


def test_shot_noise_of_a_gradient_is_as_stated():
    x, theta, weights = problem(tokens=1, n_blocks=1)
    q, grad_y, shots = cayley(skew(torch.from_numpy(theta), 4)).numpy(), weights[:, :4].reshape(1, 1, 4), 1_000_000
    y, rng = np.einsum("nij,tnj->tni", q, x), np.random.default_rng(1)
    exact = [np.einsum("nij,tnj->tni", setting, x) ** 2 / (x**2).sum() for setting in shifted(q)]
    found = []
    for _ in range(2000):
        counts = [rng.multinomial(shots, p).astype(float) for p in exact]
        _, grad_q = parameter_shift(x, q, y, grad_y, counts)
        found.append(_slopes(q, grad_q))
    _, grad_q = parameter_shift(x, q, y, grad_y, [MANY * p for p in exact])
    z = np.einsum("nab,jbc,tnc->jtna", q, GENERATORS, x)
    bound = np.sqrt(((grad_y * np.linalg.norm(x)) ** 2 * (1 + z**2 / y**2)).sum((1, 2, 3)) / (16 * shots))
    assert (np.abs(np.mean(found, 0) - _slopes(q, grad_q)) < 0.1 * bound).all()
    assert (np.std(found, 0) < 1.1 * bound).all()
    assert (np.std(found, 0) > 0.3 * bound).all()


def _slopes(q, grad_q):
    """dL/dphi for each J, from dL/dQ: Q J / 2 is the direction."""
    return np.einsum("nab,jnab->j", grad_q, np.einsum("nac,jcb->jnab", q, GENERATORS) / 2)


def test_a_zero_slice_and_a_zero_component_have_no_part_in_it():
    x, theta, weights = problem()
    q = cayley(skew(torch.from_numpy(theta), 4)).numpy()
    x[0, 0] = 0
    x[1, 1] = q[1, 2]  # y is a unit vector
    y = np.einsum("nij,tnj->tni", q, x)
    y[1, 1] = np.eye(4)[2]
    counts = [np.einsum("nij,tnj->tni", setting, x) ** 2 for setting in shifted(q)]
    grads = parameter_shift(x, q, y, weights.reshape(x.shape), counts)
    assert all(np.isfinite(grad).all() for grad in grads)
    assert (grads[0][0, 0] == 0).all()


def test_a_component_within_its_shot_noise_of_zero_does_not_blow_up():
    x, theta, weights = problem()
    q = cayley(skew(torch.from_numpy(theta), 4)).numpy()
    y, rng = np.einsum("nij,tnj->tni", q, x), np.random.default_rng(0)
    y[2, 2, 1] = 1e-17
    counts = [rng.multinomial(16, p / p.sum(-1, keepdims=True)) for s in shifted(q) for p in [(x @ s[0].T) ** 2]]
    grads = parameter_shift(x, q, y, weights.reshape(x.shape), counts)
    assert max(np.abs(grad).max() for grad in grads) < 100
