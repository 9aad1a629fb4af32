"""The adapters of :mod:`.budgets` with every block run as a circuit, on every fourth part of the test split.

Blocks of one seed, trained on the exact readout, signs read faithfully from two settings: on perfect qubits, on the
simulated Marrakesh, and there with average errors undone (:mod:`cua.quantum.mitigation`).  The **penalty** is the
change of perplexity against the same adapter evaluated without circuits on the same text; its interval is over parts,
each with shots and a dealing of pairs of qubits of its own.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit_ibm_runtime.fake_provider import FakeMarrakesh

from cua.experiments.bench import Bench, run_of
from cua.experiments.budgets import BUDGETS
from cua.experiments.noise_frontier import CUTOFF, deal
from cua.experiments.protocol import change_over_text
from cua.experiments.record import ADAPTERS, Record, adapter_digests, digest, load_result
from cua.experiments.trained import attached
from cua.hybrid import run_blocks
from cua.llm.evaluate import perplexity
from cua.llm.models import identity
from cua.quantum.blocks import BlockRunner, Execution
from cua.quantum.layout import disjoint_paths
from cua.quantum.noise import DeviceNoise

NAME = "budget_circuits"
QUESTION = "What do shots and noise leave of the best adapters of about 1,000, 6,000 and 25,000 parameters?"
SEED, SHOTS = 0, 8192
PART = 8  # windows
EVERY = 4  # parts: all of them would take eight hours of one core for 25,920 parameters alone
DEVICES = {"noisy": "none", "mitigated": "readout+depolarising", "perfect": None}  # what is undone; None: no noise


def run() -> dict[str, Any]:
    """Every device and budget, part by part.

    A part's number is the seed of its shots and of dealing pairs of qubits to blocks.

    Raises:
        FileNotFoundError: if an adapter or the run that made it is missing, naming the experiment that makes it.
    """
    paths = {study.name: f"{study.name}/exact-seed{SEED}" for study in BUDGETS}
    adapters = adapter_digests(paths.values())
    exact = {name: _exact_run(name) for name in paths}
    backend = FakeMarrakesh()
    noise = DeviceNoise(backend)
    chains = disjoint_paths(backend, 2, cutoff=CUTOFF)
    bench = Bench.prepare(test=True)
    parts = dict(list(enumerate(bench.tokens["test"].split(PART)))[::EVERY])
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "device": "fake_marrakesh",
                "mitigation": DEVICES,
                "cutoff": CUTOFF,
                "chains_sha256": digest(chains),
                "shots": SHOTS,
                "readout": "sign-faithful",
                "windows_a_part": PART,
                "parts": list(parts),
                "adapters_sha256": adapters,
            },
            "seeds": [SEED],
            "model": identity(bench.model),
            "data": {"test": bench.data["test"]},
        }
    )
    work = {
        f"{name}/{device}/{part}": (path, device, part)
        for device in DEVICES
        for name, path in paths.items()
        for part in parts
    }

    def make(key: str) -> dict[str, Any]:
        path, device, part = work[key]
        with (
            attached(bench.model, ADAPTERS / path) as adapter,
            run_blocks(adapter, one_after_another(execution(device, chains, noise, part))),
        ):
            return run_of(perplexity(bench.model, parts[part]))

    if not record.fill(work, make):
        return record.result
    return record.finish(headline(record.result["runs"], exact, load_result(BUDGETS[0].name)["runs"]["base"]))


def _exact_run(study: str) -> dict[str, Any]:
    runs, key = load_result(study)["runs"], f"exact-seed{SEED}"
    if key not in runs:
        raise FileNotFoundError(f"{study}.json has no run {key}; record it with: python -m cua.experiments {study}")
    return runs[key]


def execution(device: str, chains: list[tuple[int, ...]], noise: DeviceNoise, seed: int) -> Execution:
    """Of blocks on one of :data:`DEVICES`; the seed is that of the shots and of dealing the chains to blocks."""
    plain = Execution(shots=SHOTS, places=deal(chains, seed), seed=seed)
    mitigation = DEVICES[device]
    return plain if mitigation is None else replace(plain, noise=noise, mitigation=mitigation)


def one_after_another(execution: Execution) -> Callable[[NDArray[np.float64]], BlockRunner]:
    """Each layer's blocks go on where those of the layer before ended, for :func:`run_blocks`.

    Chosen blocks are few in each layer and the steepest come first: without this, all of those would share the first
    pairs.
    """
    places, streams, used = execution.places, count(), 0

    def runner(q: NDArray[np.float64]) -> BlockRunner:
        nonlocal used
        first = used % len(places)
        used += len(q)
        return BlockRunner(q, replace(execution, places=places[first:] + places[:first]), next(streams))

    return runner


def headline(runs: dict[str, Any], exact: dict[str, dict[str, Any]], base: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Penalty against the exact adapter and change against the base model, by budget and device; 95 % over parts."""
    base, numbers = _by_part(base), {}
    for name, reference in exact.items():
        reference = _by_part(reference)
        numbers[f"change_{name}_exact"] = change_over_text([(reference, base)])
        for device in DEVICES:
            parts = [runs[f"{name}/{device}/{part * EVERY}"] for part in range(len(base["nll"]))]
            read = {"nll": [sum(part["nll"]) for part in parts], "tokens": sum(part["tokens"] for part in parts)}
            numbers[f"penalty_{name}_{device}"] = change_over_text([(read, reference)])
            numbers[f"change_{name}_{device}"] = change_over_text([(read, base)])
    return numbers


def _by_part(run: dict[str, Any]) -> dict[str, Any]:
    """The losses of a run over the whole text, added up within each of the parts that are run on circuits."""
    starts = range(0, len(run["nll"]), PART)
    windows = [len(run["nll"][start : start + PART]) for start in starts]
    tokens = sum(windows[::EVERY]) * run["tokens"] // len(run["nll"])
    return {"nll": np.add.reduceat(run["nll"], starts)[::EVERY], "tokens": tokens}
