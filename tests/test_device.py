"""An adapter on a device: perplexity and text through jobs and a journal."""

import numpy as np
import pytest
import torch
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.transpiler import CouplingMap
from qiskit_ibm_runtime.executor_sampler import Sampler

from cua import CUAConfig, attach, hybrid
from cua.hybrid import DeviceRunner, run_on_device, slice_energies, train_on_device
from cua.llm.evaluate import perplexity
from cua.quantum.jobs import JobRunner
from cua.quantum.journal import JournalError, read_events
from cua.quantum.noise import DeviceNoise
from cua.quantum.packing import PackedCircuit
from cua.quantum.plan import DryRun
from cua.quantum.recorded import read_calls
from cua.quantum.sampler import EngineSampler
from cua.quantum.service import RunStopped

SHOTS, GATES = 4096, ["id", "x", "sx", "rz", "cz", "reset"]


@pytest.fixture(scope="module")
def device():
    return GenericBackendV2(7, GATES, coupling_map=CouplingMap.from_line(7), noise_info=True, seed=0)


@pytest.fixture(scope="module")
def packed(device):
    return PackedCircuit(device, [(0, 1), (2, 3), (5, 4)], rounds=2)


@pytest.fixture
def adapted(make_llama):
    """Eight 4x4 blocks on one v_proj, turned by a moderate angle; and 12 tokens."""
    model = make_llama(seed=3)
    adapter = attach(model, CUAConfig(target_modules=("v_proj",), layers=(1,), block_size=4))
    torch.manual_seed(0)
    for theta in adapter.parameters():
        theta.data.normal_(0, 0.25)
    return model, adapter, torch.randint(0, 97, (1, 12))


def jobs_of(packed, folder, noise=None, **options) -> JobRunner:
    shots = options.pop("shots", SHOTS)
    return JobRunner(packed, EngineSampler(noise), folder, shots, progress=False, **options)


def test_activations_are_those_of_the_exact_blocks_within_shot_noise(adapted, packed, tmp_path):
    model, adapter, ids = adapted
    (module,) = adapter.modules.values()
    outputs = []
    module.register_forward_hook(lambda _, __, y: outputs.append(y))
    with torch.no_grad():
        model(ids)
    errors = []
    for shots in (SHOTS, 100 * SHOTS):
        with jobs_of(packed, tmp_path / str(shots), shots=shots) as jobs, run_on_device(adapter, jobs):
            model(ids)
        errors.append(((outputs[-1] - outputs[0]).norm() / outputs[0].norm()).item())
    assert 0.001 < errors[0] < 0.03
    assert 5 < errors[0] / errors[1] < 20, "ten times smaller with a hundred times the shots"


def test_perplexity_and_text_through_a_device(adapted, packed, tmp_path):
    model, adapter, ids = adapted
    exact, options = perplexity(model, ids).value, {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    text = model.generate(ids, **options)
    with jobs_of(packed, tmp_path / "run", shots=100_000) as jobs, run_on_device(adapter, jobs):
        assert perplexity(model, ids).value == pytest.approx(exact, rel=0.01)
        assert torch.equal(model.generate(ids, **options), text)
    calls = read_calls(tmp_path / "run")
    assert [call["slices"].shape for call in calls] == [(12, 8, 4)] * 2 + [(1, 8, 4)] * 4
    assert perplexity(model, ids).value == exact, "afterwards the adapter is as before"


def test_a_dry_run_counts_what_a_run_sends(adapted, packed, tmp_path):
    model, adapter, ids = adapted
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with run_on_device(adapter, dry := DryRun(packed, SHOTS)):
        dry_loss, dry_text = perplexity(model, ids).value, model.generate(ids, **options)
    assert dry_loss == pytest.approx(perplexity(model, ids).value, rel=1e-4), "exact results"
    with jobs_of(packed, tmp_path / "run") as jobs, run_on_device(adapter, jobs):
        perplexity(model, ids)
        model.generate(torch.cat([ids, dry_text[:, 12:12]], 1), **options)
    submitted = [line for line in read_events(tmp_path / "run") if line["event"] == "submit"]
    assert dry.plan.circuits == sum(line["rows"] for line in submitted) == 2 * 2 * (12 + 12 + 4)
    assert dry.plan.jobs == len(submitted)
    assert dry.plan.qpu_s == pytest.approx(2 * len(submitted) + dry.plan.circuits * SHOTS * packed.shot_s())


def test_an_interrupted_text_goes_on_bit_for_bit(adapted, packed, device, tmp_path, monkeypatch):
    model, adapter, ids = adapted
    noise, options = DeviceNoise(device), {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}

    def write(folder, sampler=None):
        with (
            JobRunner(packed, sampler or EngineSampler(noise), folder, 256, progress=False) as jobs,
            run_on_device(adapter, jobs, "readout+depolarising", slice_energies(adapter, ids)),
        ):
            return model.generate(ids, **options, output_logits=True, return_dict_in_generate=True).logits

    undisturbed = write(tmp_path / "undisturbed")
    sampler = EngineSampler(noise)
    run, left = sampler.run, [4]

    def interrupted(*arguments, **keywords):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return run(*arguments, **keywords)

    monkeypatch.setattr(sampler, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "run", sampler)
    before = len(read_events(tmp_path / "run"))
    # The device is calibrated anew: the run goes on with the mitigation it began with.
    worse = GenericBackendV2(7, GATES, coupling_map=CouplingMap.from_line(7), noise_info=True, seed=1)
    monkeypatch.setattr(hybrid, "DeviceNoise", lambda *_, **__: DeviceNoise(worse))
    assert torch.equal(torch.stack(write(tmp_path / "run")), torch.stack(undisturbed))
    assert [e["event"] for e in read_events(tmp_path / "run")][before] == "opened"


def test_another_text_in_the_same_journal_is_refused(adapted, packed, tmp_path):
    model, adapter, ids = adapted
    for tokens, error in ((ids, None), (ids.flip(1), JournalError)):
        with jobs_of(packed, tmp_path / "run") as jobs, run_on_device(adapter, jobs):
            if error is None:
                model(tokens)
            else:
                with pytest.raises(error, match=r"call 0 .* had other slices or blocks"):
                    model(tokens)


def test_other_mitigation_of_the_same_counts_runs_nothing(adapted, packed, device, tmp_path):
    model, adapter, ids = adapted
    noise, found = DeviceNoise(device), {}
    for mitigation in ("none", "readout", "readout+depolarising"):
        with jobs_of(packed, tmp_path / "run", noise) as jobs, run_on_device(adapter, jobs, mitigation):
            found[mitigation] = model(ids).logits
    assert len([line for line in read_events(tmp_path / "run") if line["event"] == "submit"]) == 1
    assert not torch.equal(found["none"], found["readout"])


def test_mitigation_and_importance_bring_the_result_closer(rotations, device, tmp_path):
    """Blocks whose slices are long go to good pairs; errors of readout, gates and resets are undone on average."""
    packed = PackedCircuit(device, [(0, 1), (2, 3), (5, 4)], rounds=3)
    q, rng = rotations(9, b=4, norm=1.2), np.random.default_rng(0)
    lengths = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 5.0])  # in its own order it gets the last slot
    x = rng.normal(size=(50, 9, 4)) * lengths[:, None]
    y, errors = np.einsum("nij,tnj->tni", q, x), {}
    noise = DeviceNoise(device)
    for deal, importance in (("order", None), ("importance", lengths)):
        for mitigation in ("none", "readout", "readout+depolarising"):
            with jobs_of(packed, tmp_path / deal, noise, shots=20_000) as jobs:
                found = DeviceRunner(q, jobs, mitigation, importance)(x)
            errors[deal, mitigation] = ((found - y) ** 2).sum() / (y**2).sum()
    for deal in ("order", "importance"):
        none, readout, both = (errors[deal, m] for m in ("none", "readout", "readout+depolarising"))
        assert none > 1.2 * readout > 1.2 * 1.2 * both
    assert errors["importance", "none"] < errors["order", "none"] / 1.2


def test_energies_are_mean_squared_lengths_of_slices(adapted):
    _model, adapter, ids = adapted
    (module,) = adapter.modules.values()
    seen = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (energies,) = slice_energies(adapter, ids)
    hook.remove()
    expected = seen[0].reshape(-1, 8, 4).square().sum(-1).mean(0)
    np.testing.assert_allclose(energies, expected.numpy(), rtol=1e-5)


def test_importance_is_of_every_layer_and_stride(make_llama, packed, tmp_path):
    adapter = attach(make_llama(), CUAConfig(target_modules=("v_proj",), layers=(0, 2), block_size=4, strides=(1, 4)))
    assert [len(e) for e in slice_energies(adapter, torch.arange(8)[None])] == [8] * 4
    with jobs_of(packed, tmp_path / "run") as jobs:
        with pytest.raises(ValueError, match="importance of 1 layers and strides; the adapter has 4"):
            run_on_device(adapter, jobs, importance=[np.ones(8)])
        with run_on_device(adapter, jobs, importance=[np.ones(8)] * 4):
            pass


@pytest.mark.parametrize("importance", [np.ones(10), np.ones(14), np.full(12, np.nan)])
def test_importance_is_a_finite_number_for_each_block(rotations, packed, tmp_path, importance):
    with jobs_of(packed, tmp_path / "run") as jobs:
        with pytest.raises(ValueError, match="one finite number for each of the 12 blocks"):
            DeviceRunner(rotations(12), jobs, importance=importance)
        assert not jobs.journal.find("kept")


def test_another_deal_goes_on_with_the_first_one(adapted, packed, tmp_path):
    model, adapter, ids = adapted
    outputs = []
    for importance in (np.arange(8.0), -np.arange(8.0)):
        with jobs_of(packed, tmp_path / "run") as jobs, run_on_device(adapter, jobs, importance=[importance]):
            outputs.append(model(ids).logits)
    assert torch.equal(*outputs)
    with (
        jobs_of(packed, tmp_path / "run") as jobs,
        run_on_device(adapter, jobs),
        pytest.raises(JournalError, match="the importance of its blocks"),
    ):
        model(ids)


def test_unknown_mitigation_also_in_a_dry_run(rotations, packed):
    with pytest.raises(ValueError, match="unknown mitigation 'zne'; known: none, readout, readout"):
        DeviceRunner(rotations(12), DryRun(packed, 100), "zne")


def test_blocks_that_a_device_cannot_read_are_refused_on_entry(make_llama, packed, tmp_path):
    adapter = attach(make_llama(), CUAConfig(target_modules=("v_proj",), layers=(0,), block_size=8))
    with (
        jobs_of(packed, tmp_path / "run") as jobs,
        pytest.raises(ValueError, match="for 4x4 blocks; these are 8x8"),
        run_on_device(adapter, jobs),
    ):
        pass
    assert not any(module.executors for module in adapter.modules.values())


def test_a_budget_stops_a_text_where_it_is_spent(adapted, packed, tmp_path, monkeypatch):
    model, adapter, ids = adapted
    jobs = jobs_of(packed, tmp_path / "run", budget_s=64.0)
    monkeypatch.setattr(jobs, "_told", lambda handle, rows: {"usage_s": 5.0, "calibrated": None})
    with (
        jobs,
        run_on_device(adapter, jobs),
        pytest.raises(RunStopped, match=r"budget of 64 s 60 s are spent, and there is room for \d+ such circuits"),
    ):
        model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
    assert jobs.spent_s() == 60


def test_ibms_sampler_in_local_mode_gives_the_same_activations(adapted, device, tmp_path):
    """The client's own path, on Aer, with twirled gates and decoupling as options; one round, as Aer's resets are
    perfect."""
    model, adapter, ids = adapted
    packed = PackedCircuit(device, [(0, 1), (2, 3), (5, 4)])
    seeded = {"simulator": {"seed_simulator": 0}}
    samplers = {
        "engine": EngineSampler(DeviceNoise(device)),
        "plain": Sampler(mode=device, options=seeded),
        "twirled": Sampler(mode=device, options=seeded | {"twirling": {"enable_gates": True, "enable_measure": True}}),
        "decoupled": Sampler(mode=device, options=seeded | {"dynamical_decoupling": {"enable": True}}),
    }
    outputs, (module,) = {}, adapter.modules.values()
    for name, sampler in samplers.items():
        hook = module.register_forward_hook(lambda _, __, y, name=name: outputs.setdefault(name, y))
        with (
            JobRunner(packed, sampler, tmp_path / name, 4 * SHOTS, progress=False) as jobs,
            run_on_device(adapter, jobs, "readout"),
        ):
            model(ids[:, :4])
        hook.remove()
        assert jobs.twirls_measurements == (name == "twirled")
    for name in ("plain", "twirled", "decoupled"):
        difference = (outputs[name] - outputs["engine"]).norm() / outputs["engine"].norm()
        assert difference < 0.05, name


def test_progress_is_shown_only_where_it_is_wanted(adapted, packed, tmp_path, capfd):
    model, adapter, ids = adapted
    for progress in (True, False):
        sampler = EngineSampler(None)
        with (
            JobRunner(packed, sampler, tmp_path / str(progress), 100, progress=progress) as jobs,
            run_on_device(adapter, jobs),
        ):
            model(ids)
        assert ("pass 0" in capfd.readouterr().err) == progress


@pytest.fixture
def two_layers(make_llama, move):
    """Blocks in two layers and two strides, in double precision: gradients of the lower ones pass through the upper."""
    model = make_llama(seed=3).double()
    config = CUAConfig(target_modules=("v_proj",), layers=(1, 3), block_size=4, strides=(1, 4))
    return model, move(attach(model, config), 0.2), torch.randint(0, 97, (1, 12))


def gradients(model, adapter, ids) -> list[torch.Tensor]:
    for theta in adapter.parameters():
        theta.grad = None
    model(ids, labels=ids).loss.backward()
    return [theta.grad.clone() for theta in adapter.parameters()]


def test_gradients_from_a_device_are_those_of_autograd(two_layers, packed):
    model, adapter, ids = two_layers
    exact = gradients(model, adapter, ids)
    with train_on_device(adapter, dry := DryRun(packed, SHOTS)):
        found = gradients(model, adapter, ids)
    for theirs, ours in zip(exact, found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        assert theirs.abs().max() > 1e-3
    layers_of_blocks, blocks = 4, 8
    assert dry.plan.circuits == (2 + 6) * layers_of_blocks * ids.numel() * packed.n_circuits(blocks)


def test_an_interrupted_training_step_goes_on_bit_for_bit(adapted, packed, tmp_path, monkeypatch):
    model, adapter, ids = adapted
    run, left = EngineSampler.run, iter(range(9))

    def interrupted(self, pubs):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return run(self, pubs)

    def step(name: str) -> list[torch.Tensor]:
        with (
            jobs_of(packed, tmp_path / name, max_executions=20 * SHOTS) as jobs,
            train_on_device(adapter, jobs),
        ):
            return gradients(model, adapter, ids)

    whole = step("whole")
    with monkeypatch.context() as patch:
        patch.setattr(EngineSampler, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            step("run")
    assert 3 < sum(event["event"] == "counts" for event in read_events(tmp_path / "run")) < 9  # in the backward pass
    assert all(torch.equal(ours, again) for ours, again in zip(whole, step("run"), strict=True))
    assert all(not module.executors for module in adapter.modules.values())
