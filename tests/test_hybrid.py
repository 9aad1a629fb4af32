import copy
import itertools

import numpy as np
import pytest
import torch
from qiskit.transpiler import InstructionProperties
from qiskit_ibm_runtime.fake_provider import FakeBoston, FakeMarrakesh, FakeTorino

from cua import CUAConfig, attach, hybrid
from cua.experiments import noise_frontier
from cua.hybrid import run_on_circuits
from cua.quantum import blocks
from cua.quantum.blocks import CIRCUITS, COUNTS_READOUTS, MITIGATIONS, BlockRunner, Execution
from cua.quantum.circuits import SUPERDENSE_OUTCOMES, quaternion_product, superdense_angles, superdense_template
from cua.quantum.engine import NoisyCircuit
from cua.quantum.estimate import sample, sign_faithful
from cua.quantum.layout import disjoint_paths
from cua.quantum.mitigation import readout_response
from cua.quantum.noise import DeviceNoise

PLACES = {2: ((0,), (2,)), 4: ((0, 1), (3, 2), (2, 1)), 8: ((0, 1, 2), (3, 2, 1)), 16: ((0, 1, 2, 3), (3, 2, 1, 0))}
FOUR_BY_FOUR = list(itertools.product(CIRCUITS, COUNTS_READOUTS))
ALL = [(4, *names) for names in FOUR_BY_FOUR]
ALL += [(2, "textbook", "sign-constrained"), (8, "textbook", "true-signs"), (16, "textbook", "true-signs")]


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def on_circuits(model, ids, adapter, **options):
    with run_on_circuits(adapter, Execution(**options)):
        return logits(model, ids)


def problem(rotations, b: int, n_blocks: int = 6, tokens: int = 30, norm: float = 1.2):
    """Slices ``(tokens, n_blocks, b)``, blocks, and Q x."""
    x, q = np.random.default_rng(b).normal(size=(tokens, n_blocks, b)), rotations(n_blocks, b=b, norm=norm)
    return x, q, np.einsum("nij,tnj->tni", q, x)


def wanted(x, y, readout):
    return np.copysign(y, x) if readout == "sign-constrained" else y


@pytest.mark.parametrize(("b", "circuit", "readout"), ALL)
def test_perfect_circuits_compute_the_block(rotations, b, circuit, readout):
    x, q, y = problem(rotations, b)
    x[3, 2], y[3, 2] = 0, 0
    x[4, 1], y[4, 1] = q[1, 0], np.eye(b)[0]  # exact zeros in y
    found = BlockRunner(q, Execution(circuit, readout, shots=None))(x)
    np.testing.assert_allclose(found, wanted(x, y, readout), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("b", "circuit", "readout"), ALL)
def test_readout_mitigation_is_exact_for_readout_errors(rotations, readout_only, b, circuit, readout):
    x, q, y = problem(rotations, b)
    plain, mitigated = (
        BlockRunner(q, Execution(circuit, readout, None, readout_only, PLACES[b], mitigation))(x)
        for mitigation in ("none", "readout")
    )
    assert np.abs(plain - wanted(x, y, readout)).max() > 0.05
    np.testing.assert_allclose(mitigated, wanted(x, y, readout), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("b", "circuit", "readout"), ALL)
def test_each_mitigation_brings_blocks_closer(rotations, mesh_noise, b, circuit, readout):
    x, q, y = problem(rotations, b, n_blocks=3)
    errors = []
    for mitigation in MITIGATIONS:
        found = BlockRunner(q, Execution(circuit, readout, None, mesh_noise, PLACES[b], mitigation))(x)
        errors.append(((found - wanted(x, y, readout)) ** 2).mean())
    assert errors[0] > errors[1] > 2 * errors[2] > 0


def test_noisy_probabilities_are_those_of_the_engine(rotations, mesh_noise):
    x, q, _ = problem(rotations, 4, n_blocks=3)
    found = BlockRunner(q, Execution(noise=mesh_noise, places=PLACES[4])).probabilities(x)
    for i, place in enumerate(PLACES[4]):
        angles = superdense_angles(x[:, i], q[i])
        p = NoisyCircuit(superdense_template(), mesh_noise, [place]).probabilities(angles[None])[0].numpy()
        np.testing.assert_allclose(found[:, i], p[:, SUPERDENSE_OUTCOMES], atol=1e-14)


@pytest.mark.parametrize("circuit", ["superdense", "textbook"])
def test_blocks_take_their_places_in_turn(rotations, mesh_noise, circuit):
    x, q, _ = problem(rotations, 4, n_blocks=5)
    places = PLACES[4][:2]
    together = BlockRunner(q, Execution(circuit, noise=mesh_noise, places=places)).probabilities(x)
    assert together.shape == (30, 5, 4)
    for block in range(5):
        for i, place in enumerate(places):
            alone = Execution(circuit, noise=mesh_noise, places=(place,))
            p = BlockRunner(q[block : block + 1], alone).probabilities(x[:, block : block + 1])[:, 0]
            assert np.allclose(p, together[:, block], atol=1e-12) == (i == block % 2)


@pytest.mark.parametrize("circuit", ["superdense", "textbook"])
def test_the_second_setting_is_a_quarter_turn(rotations, circuit):
    x, q, y = problem(rotations, 4)
    runner = BlockRunner(q, Execution(circuit, shots=None))
    turned = quaternion_product([1 / np.sqrt(2), *[1 / np.sqrt(6)] * 3], y)
    square = (x**2).sum(-1, keepdims=True)
    np.testing.assert_allclose(runner.probabilities(x), y**2 / square, atol=1e-12)
    np.testing.assert_allclose(runner.probabilities(x, 1), turned**2 / square, atol=1e-12)


@pytest.mark.parametrize(("circuit", "readout"), [names for names in FOUR_BY_FOUR if names[1] != "sign-faithful"])
def test_one_setting_takes_all_shots(rotations, circuit, readout):
    x, q, _ = problem(rotations, 4)
    y = BlockRunner(q, Execution(circuit, readout, shots=101))(x)
    counts = 101 * y**2 / (x**2).sum(-1, keepdims=True)
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-9)
    np.testing.assert_allclose(counts.sum(-1), 101)


@pytest.mark.parametrize("circuit", ["superdense", "textbook"])
def test_two_settings_share_the_shots(rotations, circuit):
    x, q, y = problem(rotations, 4, tokens=1000)
    found = BlockRunner(q, Execution(circuit, shots=2**17))(x)
    errors = np.sort((((found - y) ** 2).sum(-1) / (x**2).sum(-1)).ravel())[:-60]
    assert 0.85 < errors.mean() / (3 / (4 * 2**17)) < 1.15  # twice that if the shots of both were those of one


def test_few_shots_are_read_with_the_overlap_of_each_block(rotations):
    """At a few dozen shots the global sign is often in doubt; the mean overlap of the block, tr(Q)/4, then helps."""
    x, q, _ = problem(rotations, 4, tokens=3000, norm=1.8)
    runner = BlockRunner(q, Execution(shots=32))
    found, rng = runner(x), np.random.default_rng((0, 0))
    counts = [sample(runner.probabilities(x, setting), 16, rng) for setting in (0, 1)]
    np.testing.assert_array_equal(found, sign_faithful(x, *counts, mean_overlap=np.trace(q, axis1=1, axis2=2) / 4))
    assert not np.array_equal(found, sign_faithful(x, *counts))


def test_layers_and_strides_draw_shots_of_their_own(rotations):
    x, q, _ = problem(rotations, 4)
    estimates = [BlockRunner(q, Execution(shots=64), stream)(x) for stream in (0, 1, 0)]
    assert np.array_equal(estimates[0], estimates[2])
    assert not np.array_equal(estimates[0], estimates[1])


@pytest.mark.parametrize("options", [{"layers": (1, 2)}, {"layers": (1,), "strides": (1, 4)}], ids=str)
def test_every_layer_of_blocks_has_a_stream(llama, options):
    adapter, streams = attach(llama, CUAConfig(**options)), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hybrid, "BlockRunner", lambda q, execution, stream: streams.append(stream))
        with run_on_circuits(adapter, Execution()):
            pass
    assert streams == [0, 1]


@pytest.mark.parametrize("mitigation", MITIGATIONS)
def test_mitigation_corrects_the_same_counts(rotations, mesh_noise, monkeypatch, mitigation):
    """Runs that differ in mitigation only are comparable shot by shot."""
    x, q, _ = problem(rotations, 4)
    drawn = []
    monkeypatch.setattr(blocks, "sample", lambda *arguments: drawn.append(sample(*arguments)) or drawn[-1])
    for name in ("none", mitigation):
        BlockRunner(q, Execution(noise=mesh_noise, places=PLACES[4], mitigation=name))(x)
    assert all(np.array_equal(a, b) for a, b in zip(drawn[:2], drawn[2:], strict=True))


@pytest.mark.parametrize("backend", [FakeTorino(), FakeMarrakesh(), FakeBoston()], ids=lambda backend: backend.name)
@pytest.mark.parametrize("n_qubits", [1, 2, 3, 4])
def test_every_measurement_within_the_cutoff_of_the_recorded_study_can_be_inverted(backend, n_qubits):
    noise = DeviceNoise(backend)
    places = disjoint_paths(backend, n_qubits, cutoff=noise_frontier.CUTOFF)
    smallest = [np.linalg.eigvals(readout_response(noise, place)).real.min() for place in places]
    assert min(smallest) > 0.4


def test_mitigation_of_a_lost_signal_is_refused_before_any_slice_is_run(rotations, mesh):
    broken = copy.deepcopy(mesh)
    broken.target.update_instruction_properties("measure", (2,), InstructionProperties(1e-6, 0.5))
    with pytest.raises(ValueError, match=r"'readout': response matrix 1, .*places\[i % 2\].*cutoff=5"):
        BlockRunner(
            rotations(4, b=2),
            Execution("textbook", "true-signs", 8, DeviceNoise(broken), ((0,), (2,)), "readout"),
        )


@pytest.mark.parametrize("shape", [(30, 5, 4), (30, 6, 2), (6, 4), (1, 30, 6, 4)], ids=str)
def test_slices_have_to_fit_the_blocks(rotations, shape):
    with pytest.raises(ValueError, match=r"expected \(tokens, 6, 4\)"):
        BlockRunner(rotations(6, b=4), Execution())(np.ones(shape))


@pytest.fixture
def adapted(llama, move):
    """The tiny model and an adapter on two layers."""

    def adapted(**options):
        return move(attach(llama, CUAConfig(layers=(1, 2), **options)))

    return adapted


EXACT = [
    ({}, "superdense", "sign-faithful"),
    ({}, "textbook", "true-signs"),
    ({}, "superdense", "true-signs"),
    ({}, "textbook", "sign-faithful"),
    ({"side": "output"}, "superdense", "sign-faithful"),
    ({"block_size": 2}, "textbook", "true-signs"),
    ({"block_size": 8}, "textbook", "true-signs"),
    ({"strides": (1, 4)}, "superdense", "sign-faithful"),
    ({"strides": (1, 4)}, "textbook", "true-signs"),
    ({"strides": (4, 1), "side": "output"}, "superdense", "sign-faithful"),
    ({"strides": (1, 2, 4), "block_size": 2}, "textbook", "true-signs"),
]


@pytest.mark.parametrize(("options", "circuit", "readout"), EXACT, ids=str)
def test_infinitely_many_perfect_shots_are_the_exact_model(llama, ids, adapted, options, circuit, readout):
    base = logits(llama, ids)
    adapter = adapted(**options)
    exact = logits(llama, ids)
    assert (exact - base).abs().max() > 0.1
    found = on_circuits(llama, ids, adapter, circuit=circuit, readout=readout, shots=None)
    assert found.dtype == exact.dtype
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)
    assert torch.equal(logits(llama, ids), exact)


@pytest.mark.parametrize("circuit", ["superdense", "textbook"])
@pytest.mark.parametrize(
    ("trained", "options"),
    [("exact", {}), ("sign-constrained", {"strides": (1, 4)}), ("sign-constrained", {"side": "output"})],
    ids=str,
)
def test_the_sign_constrained_model(make_llama, llama, ids, move, adapted, trained, circuit, options):
    """Whatever readout the adapter was trained with: that of the execution counts."""
    reference = make_llama()
    move(attach(reference, CUAConfig(layers=(1, 2), readout="sign-constrained", **options)))
    adapter = adapted(readout=trained, **options)
    found = on_circuits(llama, ids, adapter, circuit=circuit, readout="sign-constrained", shots=None)
    torch.testing.assert_close(found, logits(reference, ids), rtol=0, atol=1e-4)
    exact = on_circuits(llama, ids, adapter, circuit=circuit, readout="true-signs", shots=None)
    assert (found - exact).abs().max() > 0.1


def test_executors_come_off(llama, ids, adapted):
    adapter = adapted()
    exact = logits(llama, ids)
    with run_on_circuits(adapter, Execution()):
        assert all(len(module.executors) == 1 for module in adapter.modules.values())
    assert not any(module.executors for module in adapter.modules.values())
    with pytest.raises(KeyError, match="inside"), run_on_circuits(adapter, Execution()):
        raise KeyError("inside")
    assert not any(module.executors for module in adapter.modules.values())
    assert torch.equal(logits(llama, ids), exact)


def test_a_disabled_adapter_runs_no_circuit(llama, ids, adapted):
    base = logits(llama, ids)
    adapter = adapted()
    with run_on_circuits(adapter, Execution()), adapter.disabled():
        assert torch.equal(logits(llama, ids), base)


def test_no_gradients_inside_and_gradients_after(llama, ids, adapted):
    adapter = adapted()
    with run_on_circuits(adapter, Execution()):
        assert not llama(ids).logits.requires_grad
    llama(ids, labels=ids).loss.backward()
    assert all(theta.grad.abs().max() > 0 for theta in adapter.parameters())


def test_a_bfloat16_model_stays_one(llama, ids, move):
    model = llama.to(torch.bfloat16)
    adapter = move(attach(model, CUAConfig(layers=(1, 2))))
    found = on_circuits(model, ids, adapter, shots=None)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, logits(model, ids), rtol=0, atol=0.2)


@pytest.mark.parametrize("readout", ["sign-faithful", "sign-constrained", "true-signs"])
def test_a_seed_fixes_the_shots(llama, ids, adapted, readout):
    adapter = adapted()
    first, again, other = (on_circuits(llama, ids, adapter, readout=readout, shots=64, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_forward_pass_draws_new_shots(llama, ids, adapted):
    with run_on_circuits(adapted(), Execution(shots=64)):
        assert not torch.equal(logits(llama, ids), logits(llama, ids))


def test_more_shots_come_closer(llama, ids, adapted):
    adapter = adapted()
    exact = logits(llama, ids)
    errors = [(on_circuits(llama, ids, adapter, shots=n) - exact).square().mean() for n in (16, 512, 2**15)]
    assert errors[0] > 4 * errors[1] > 40 * errors[2] > 0


@pytest.mark.parametrize("options", [{}, {"strides": (1, 4)}], ids=str)
@pytest.mark.parametrize(("circuit", "readout"), [("superdense", "sign-faithful"), ("textbook", "true-signs")])
def test_noise_moves_the_model_and_mitigation_moves_it_back(llama, ids, adapted, mesh_noise, circuit, readout, options):
    adapter = adapted(**options)
    exact = logits(llama, ids)
    run = {"circuit": circuit, "readout": readout, "shots": None, "noise": mesh_noise, "places": PLACES[4]}
    errors = [
        (on_circuits(llama, ids, adapter, mitigation=name, **run) - exact).square().mean() for name in MITIGATIONS
    ]
    assert errors[0] > 0.01
    assert errors[0] > 4 * errors[1] > 8 * errors[2]


@pytest.mark.parametrize("circuit", ["superdense", "textbook"])
def test_a_block_that_turns_too_far_is_refused(rotations, circuit):
    norms = np.array([0.5, 1.99, 2.01, 1.0, 1e3, 4.0])
    q = rotations(6, norm=norms)
    with pytest.raises(ValueError, match=r"^3 of 6 blocks turn by a right angle or more \(\|K\|_2 >= 2\)"):
        BlockRunner(q, Execution(circuit))
    BlockRunner(q[norms < 2], Execution(circuit))
    BlockRunner(q, Execution(circuit, "true-signs"))


def test_a_refused_layer_leaves_the_model_alone(llama, ids, adapted):
    adapter = adapted()
    with torch.no_grad():
        adapter.parameters()[1][:2] *= 100
    exact = logits(llama, ids)
    with pytest.raises(ValueError, match="2 of 8 blocks turn"), run_on_circuits(adapter, Execution()):
        pass
    assert not any(module.executors for module in adapter.modules.values())
    assert torch.equal(logits(llama, ids), exact)


@pytest.mark.parametrize(
    ("circuit", "readout", "message"),
    [
        ("superdense", "true-signs", "circuit='superdense' is for 4x4 blocks; these are 8x8"),
        ("superdense", "sign-faithful", "circuit='superdense' is for 4x4 blocks"),
        ("textbook", "sign-faithful", "readout='sign-faithful' is for 4x4 blocks; these are 8x8"),
    ],
)
def test_four_by_four_only(rotations, circuit, readout, message):
    with pytest.raises(ValueError, match=message):
        BlockRunner(rotations(3, b=8), Execution(circuit, readout))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"circuit": "bell"}, "unknown circuit 'bell'; known: superdense, textbook"),
        ({"readout": "exact"}, "unknown readout 'exact'; known: sign-faithful, sign-constrained, true-signs"),
        ({"mitigation": "zne"}, "unknown mitigation 'zne'; known: none, readout, readout.depolarising"),
        ({"shots": 1}, "shots=1: expected a whole number, at least 2, or None"),
        ({"shots": 0}, "shots=0"),
        ({"shots": -8192}, "shots=-8192"),
        ({"shots": 8192.0}, "shots=8192.0: expected a whole number"),
        ({"shots": "8192"}, "shots='8192': expected a whole number, at least 2, or None"),
        ({"seed": -1}, "seed=-1: expected a whole number, at least 0$"),
        ({"seed": None}, "seed=None"),
        ({"mitigation": "readout"}, "mitigation='readout' without noise"),
        ({"mitigation": "readout+depolarising", "places": ((0, 1),)}, "without noise: there is nothing to undo"),
    ],
    ids=str,
)
def test_execution_names_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        Execution(**options)


def test_noise_needs_places(mesh_noise):
    with pytest.raises(ValueError, match=r"noise needs places, the physical qubits: see cua.quantum.layout"):
        Execution(noise=mesh_noise)


def test_places_may_be_an_array(mesh_noise):
    assert Execution(noise=mesh_noise, places=np.array([[0, 1], [3, 2]])).places == ((0, 1), (3, 2))


def test_places_have_to_fit_the_block(rotations, mesh_noise):
    for b, circuit in (4, "superdense"), (8, "textbook"):
        with pytest.raises(ValueError, match="does not name"):
            BlockRunner(rotations(2, b=b), Execution(circuit, "true-signs", noise=mesh_noise, places=((0,), (1,))))
