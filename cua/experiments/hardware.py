"""A layer of a language model on a simulated processor, through jobs and a journal, as on a real one.

Three questions.  What does it cost to use a pair of qubits several times in a shot?  What does it bring to put the
blocks that matter on the best pairs?  And does the model still write the same text?  Errors of resets are in the noise,
in one case also those of qubits that wait for slower pairs.  A seed is that of the adapter's training, of the shots and
of random deals.
"""

import tempfile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime.fake_provider import FakeMarrakesh
from torch import Tensor

import cua
from cua.experiments.bench import Bench, run_of
from cua.experiments.protocol import mean_interval, percent_change
from cua.experiments.record import ADAPTERS, Record, adapter_digests, point
from cua.experiments.trained import attached
from cua.experiments.v_proj import BOUNDED
from cua.hybrid import run_on_device, slice_energies
from cua.llm.data import evenly
from cua.llm.evaluate import perplexity
from cua.llm.models import identity
from cua.llm.prefix import SplitModel
from cua.quantum.blocks import MITIGATIONS
from cua.quantum.jobs import JobRunner
from cua.quantum.layout import disjoint_paths
from cua.quantum.mitigation import depolarising_strength
from cua.quantum.noise import DeviceNoise
from cua.quantum.packing import PackedCircuit
from cua.quantum.sampler import EngineSampler

NAME = "hardware"
QUESTION = "What do reuse of qubits and the deal of blocks cost or bring, and does the model still write the same text?"
(LAYER,), WINDOWS, PROMPTS, PROMPT_TOKENS, NEW_TOKENS = BOUNDED.adapter.layers, 4, 10, 40, 64
PAIRS, CUTOFF, SHOTS = 48, 5.0, 4096  # 144 blocks in three rounds of 48; shots of each of the two settings
PACKINGS = {"1_round": (1, 1), "3_rounds": (3, 1), "3_rounds_2_resets": (3, 2)}  # rounds, resets
DEALS = ("random", "importance")
ERRORS = ("measurement", "reset", "reset_idle")
DEEP, SLICES = 17, 40  # rounds that hold the 1,024 blocks of Llama 3.1 8B on 63 pairs; slices for each block
SEEDS = (0, 1, 2)


def run() -> dict[str, Any]:
    """Strength of the noise by round, perplexity on windows spread over the test split, and greedy continuations.

    Raises:
        FileNotFoundError: if an adapter is missing, naming the experiment that trains it.
    """
    folders = [f"{BOUNDED.name}/exact-seed{seed}" for seed in SEEDS]
    adapters = adapter_digests(folders, ADAPTERS)
    device = FakeMarrakesh()
    noise = DeviceNoise(device, asymmetric_readout=True)
    pairs = disjoint_paths(device, 2, limit=PAIRS, cutoff=CUTOFF)
    bench = Bench.prepare(test=True)
    picks = {n: evenly(len(bench.tokens["test"]), n) for n in (WINDOWS, PROMPTS)}
    ids, prompts = bench.tokens["test"][picks[WINDOWS]], bench.tokens["test"][picks[PROMPTS], :PROMPT_TOKENS]
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "device": device.name,
                "pairs": pairs,
                "cutoff": CUTOFF,
                "shots_per_setting": SHOTS,
                "packings": PACKINGS,
                "windows": picks[WINDOWS].tolist(),
                "prompts": picks[PROMPTS].tolist(),
                "prompt_tokens": PROMPT_TOKENS,
                "new_tokens": NEW_TOKENS,
                "adapters_sha256": adapters,
            },
            "seeds": SEEDS,
            "model": identity(bench.model),
            "data": bench.data,
        }
    )
    split = SplitModel(bench.model, LAYER)
    prefix = split.prefix(ids, progress=True)
    packed = {name: PackedCircuit(device, pairs, *packing) for name, packing in PACKINGS.items()}
    deep = {resets: PackedCircuit(device, pairs, DEEP, resets) for resets in (1, 2)}

    work = [f"strength/{resets}/{errors}/{seed}" for seed in SEEDS for resets in deep for errors in ERRORS]
    work += [f"text/{seed}" for seed in SEEDS]
    work += [f"perplexity/{name}/{deal}/{seed}" for seed in SEEDS for name in PACKINGS for deal in DEALS]

    def make(key: str) -> dict[str, Any]:
        kind, *which, number = key.split("/")
        seed = int(number)
        with attached(bench.model, ADAPTERS / folders[seed]) as adapter:
            if kind == "strength":
                resets, errors = which
                return {"by_round": strengths(adapter, deep[int(resets)], noise, errors, seed)}
            energies = slice_energies(adapter, bench.tokens["train"][:2])
            if kind == "text":
                return write(adapter, packed["3_rounds_2_resets"], noise, energies, prompts, seed)
            name, deal = which
            rng = np.random.default_rng(seed)
            importance = [rng.random(len(e)) for e in energies] if deal == "random" else energies
            return mitigated(adapter, packed[name], noise, importance, (ids, split, prefix), seed)

    if not record.fill(work, make):
        return record.result
    return record.finish(headline(record.result["runs"]))


def strengths(adapter: cua.Adapter, packed: PackedCircuit, noise: DeviceNoise, errors: str, seed: int) -> list[float]:
    """Share of shots that come out at random, by round, in the mean over pairs.

    Each round has the same blocks, a pair its own, and the same slices.
    """
    device, n = packed.backend, len(packed.pairs)
    circuit = packed.circuit
    if errors == "reset_idle":  # as soon as possible: qubits of fast pairs wait after their gates, not before
        circuit = generate_preset_pass_manager(0, device, scheduling_method="asap").run(circuit)
    (module,) = adapter.modules.values()
    q = np.tile(module.blocks().detach().double().numpy()[:n], (packed.rounds, 1, 1))
    x = np.tile(np.random.default_rng(seed).normal(size=(SLICES, n, 4)), (1, packed.rounds, 1))
    sampler = EngineSampler(noise, seed, reset_errors=errors != "measurement")
    (result,) = sampler.run([(circuit, packed.angles(x, q)[:, 0], 1 << 15)]).result()
    seen = packed.counts(result.data) / (1 << 15)
    ideal = np.einsum("nij,tnj->tni", q, x) ** 2 / (x**2).sum(-1, keepdims=True)
    by_slot = [depolarising_strength(seen[:, slot], ideal[:, slot]) for slot in range(packed.n_slots)]
    return [round(float(s), 5) for s in np.reshape(by_slot, (packed.rounds, n)).mean(1)]


def mitigated(
    adapter: cua.Adapter,
    packed: PackedCircuit,
    noise: DeviceNoise,
    importance: list[NDArray[np.float64]],
    text: tuple[Tensor, SplitModel, Tensor],
    seed: int,
) -> dict[str, Any]:
    """Perplexity, exact and with each mitigation of the same counts; and the relative error of the layer's output."""
    runs = {"exact": read(adapter, *text)}
    with tempfile.TemporaryDirectory() as folder:
        for mitigation in MITIGATIONS:  # the second and third read the counts of the first
            with (
                JobRunner(packed, EngineSampler(noise, seed), folder, SHOTS) as jobs,
                run_on_device(adapter, jobs, mitigation, importance, noise),
            ):
                runs[mitigation] = read(adapter, *text)
    exact = runs["exact"].pop("output")
    for mitigation in MITIGATIONS:
        off = (runs[mitigation].pop("output") - exact).square().sum(1) / exact.square().sum(1)
        runs[mitigation]["output_error"] = off.mean().item()
    return runs


def read(adapter: cua.Adapter, ids: Tensor, split: SplitModel, prefix: Tensor) -> dict[str, Any]:
    """Perplexity, and what comes out of the adapted layer, ``(tokens, width)``."""
    outputs: list[Tensor] = []
    (module,) = adapter.modules.values()
    with module.register_forward_hook(lambda _, __, y: outputs.append(y.detach().double().flatten(0, -2))):
        measured = perplexity(adapter.model, ids, split=split, prefix=prefix)
    return run_of(measured) | {"output": torch.cat(outputs)}


def write(
    adapter: cua.Adapter,
    packed: PackedCircuit,
    noise: DeviceNoise,
    energies: list[NDArray[np.float64]],
    prompts: Tensor,
    seed: int,
) -> dict[str, Any]:
    """Greedy continuations, exact and on the device: where each first differs, and the exact probabilities there."""
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    firsts, gaps = [], []
    for prompt in prompts[:, None]:
        exact = adapter.model.generate(prompt, **options)
        with tempfile.TemporaryDirectory() as folder:
            sampler = EngineSampler(noise, seed)
            with (
                JobRunner(packed, sampler, folder, SHOTS, progress=False) as jobs,
                run_on_device(adapter, jobs, MITIGATIONS[-1], energies, noise),
            ):
                written = adapter.model.generate(prompt, **options)
        differing = (exact != written).nonzero()
        if not len(differing):
            firsts.append(None)
            gaps.append(None)
            continue
        place = int(differing[0, 1])
        with torch.no_grad():
            p = adapter.model(exact[:, :place]).logits[0, -1].float().softmax(-1)
        firsts.append(place - PROMPT_TOKENS)
        gaps.append([round(float(p[tokens[0, place]]), 4) for tokens in (exact, written)])
    return {"first_difference": firsts, "probabilities": gaps}


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Means over seeds with 95 % intervals."""

    numbers = {}
    for resets in (1, 2):
        for errors in ERRORS:
            by_round = [runs[f"strength/{resets}/{errors}/{seed}"]["by_round"] for seed in SEEDS]
            label = f"{resets}_resets_{errors}"
            numbers[f"strength_first_{label}"] = mean_interval([100 * rounds[0] for rounds in by_round], "%")
            numbers[f"strength_later_{label}"] = mean_interval([100 * np.mean(rounds[1:]) for rounds in by_round], "%")
    for name in PACKINGS:
        for deal in DEALS:
            mine = [runs[f"perplexity/{name}/{deal}/{seed}"] for seed in SEEDS]
            for mitigation in MITIGATIONS:
                label = f"{name}_{deal}_{mitigation.replace('+', '_')}"
                penalties = [percent_change(run[mitigation], run["exact"]) for run in mine]
                errors = [100 * run[mitigation]["output_error"] for run in mine]
                numbers[f"penalty_{label}"] = mean_interval(penalties, "%")
                numbers[f"output_error_{label}"] = mean_interval(errors, "%")
    for name in PACKINGS:
        for mitigation in MITIGATIONS:
            errors = {
                deal: [runs[f"perplexity/{name}/{deal}/{seed}"][mitigation]["output_error"] for seed in SEEDS]
                for deal in DEALS
            }
            logs = mean_interval(np.log(errors["random"]) - np.log(errors["importance"]), "1")
            gain = {key: value if key == "unit" else float(np.exp(value)) for key, value in logs.items()}
            numbers[f"deal_gain_{name}_{mitigation.replace('+', '_')}"] = gain  # geometric mean
    firsts = [first for seed in SEEDS for first in runs[f"text/{seed}"]["first_difference"]]
    gaps = [gap for seed in SEEDS for gap in runs[f"text/{seed}"]["probabilities"] if gap]
    numbers["texts"] = point(len(firsts), "texts")
    numbers["same_text"] = point(sum(first is None for first in firsts), "texts")
    if gaps:
        numbers["median_first_difference"] = point(float(np.median([f for f in firsts if f is not None])) + 1, "tokens")
        numbers["median_gap"] = point(float(np.median([a - b for a, b in gaps])), "1")
        numbers["largest_gap"] = point(float(max(a - b for a, b in gaps)), "1")
    return numbers
