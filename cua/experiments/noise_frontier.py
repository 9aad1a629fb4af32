"""What device noise costs a trained adapter, by block size, circuit, shots and mitigation.

Adapters trained without noise, on one v_proj, are evaluated with their blocks run as noisy circuits.  The **noise
penalty** is the change of test perplexity against the same adapter evaluated without circuits.  A seed is that of
training, of the shots and of dealing the device's chains of qubits to the blocks.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from qiskit_ibm_runtime import fake_provider

from cua.experiments.bench import Bench, run_of
from cua.experiments.protocol import change_over_text, mean_interval, percent_change
from cua.experiments.record import ADAPTERS, Record, adapter_digests, digest
from cua.experiments.trained import attached
from cua.experiments.v_proj import BOUNDED, ONE_LAYER
from cua.hybrid import run_on_circuits
from cua.llm.data import evenly
from cua.llm.evaluate import perplexity
from cua.llm.models import identity
from cua.llm.prefix import SplitModel
from cua.quantum.blocks import MITIGATIONS, Execution
from cua.quantum.layout import disjoint_paths
from cua.quantum.noise import DeviceNoise

NAME = "noise_frontier"
QUESTION = "What does device noise cost a trained adapter, by block size, circuit, shots and mitigation?"
(LAYER,), WINDOWS = ONE_LAYER.adapter.layers, 16
CUTOFF = 5.0  # times a device's median error: what is worse is not used, for blocks of any size alike
DEVICES = {
    "fake_torino": "FakeTorino",
    "fake_marrakesh": "FakeMarrakesh",
    "fake_boston": "FakeBoston",
}  # Heron r1, r2, r3
TRAINED = {  # folders of adapters, less the seed
    "2x2": "v_proj_2x2/exact",
    "4x4": f"{BOUNDED.name}/exact",
    "4x4_constrained": f"{ONE_LAYER.name}/sign-constrained",  # trained with copied signs, as the paper's
    "8x8": "v_proj_8x8/exact",
    "16x16": "v_proj_16x16/exact",
    "butterfly": "v_proj_butterfly/exact",
    "butterfly5": "v_proj_butterfly5/exact",
}
QUBITS = {"2x2": 1, "8x8": 3, "16x16": 4}  # the others: 2
MAIN_PIPELINES = [
    *((size, "textbook", "true-signs") for size in ("2x2", "4x4", "8x8", "16x16")),
    ("4x4", "superdense", "sign-faithful"),
]
MORE_PIPELINES = [
    *(("4x4_constrained", circuit, "sign-constrained") for circuit in ("textbook", "superdense")),
    *((size, "superdense", "true-signs") for size in ("4x4", "butterfly", "butterfly5")),
    *((size, "superdense", "sign-faithful") for size in ("butterfly", "butterfly5")),
]
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Case:
    """One evaluation: which adapter, on which device, how."""

    blocks: str
    circuit: str
    readout: str
    device: str
    shots: int | None
    mitigation: str
    seed: int

    @property
    def key(self) -> str:
        return "/".join(map(str, astuple(self)))

    @property
    def exact(self) -> str:
        """Key of the run of the same adapter without circuits, with the readout that it was trained with."""
        return f"{self.blocks}/exact/{self.seed}"

    @property
    def label(self) -> str:
        """What the runs of all seeds share, as in the headline."""
        return re.sub(r"\W", "_", "_".join(map(str, astuple(self)[:-1])))


def cases() -> Iterator[Case]:
    """The grid: at the paper's 8,192 shots all seeds, on Marrakesh all pipelines, on the other devices the main ones;
    with other shots one seed, the main ones on Marrakesh.
    """
    both = "readout+depolarising"
    for seed in SEEDS:
        for pipeline in MAIN_PIPELINES + MORE_PIPELINES:
            for mitigation in MITIGATIONS:
                yield Case(*pipeline, "fake_marrakesh", 8192, mitigation, seed)
        for pipeline in MAIN_PIPELINES:
            for device in ("fake_torino", "fake_boston"):
                for mitigation in ("none", both):
                    yield Case(*pipeline, device, 8192, mitigation, seed)
    for pipeline in MAIN_PIPELINES:
        for shots in (1024, 65536, None):
            for mitigation in ("none", both):
                yield Case(*pipeline, "fake_marrakesh", shots, mitigation, SEEDS[0])


def run() -> dict[str, Any]:
    """Every case on the same windows, spread evenly over the test split.

    Raises:
        FileNotFoundError: if an adapter is missing, naming the experiment that trains it.
    """
    folders = {blocks: [f"{path}-seed{seed}" for seed in SEEDS] for blocks, path in TRAINED.items()}
    adapters = adapter_digests((path for seeds in folders.values() for path in seeds), ADAPTERS)
    backends = {name: getattr(fake_provider, cls)() for name, cls in DEVICES.items()}
    noises = {name: DeviceNoise(backend) for name, backend in backends.items()}
    places = {(name, n): disjoint_paths(backends[name], n, cutoff=CUTOFF) for name in backends for n in (1, 2, 3, 4)}
    digests = {f"{name}, {n} qubits": digest(chains) for (name, n), chains in places.items()}
    bench = Bench.prepare(test=True)
    pick = evenly(len(bench.tokens["test"]), WINDOWS)
    ids = bench.tokens["test"][pick]
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "layer": LAYER,
                "windows": pick.tolist(),
                "cutoff": CUTOFF,
                "devices": DEVICES,
                "chains_sha256": digests,
                "adapters": folders,
                "adapters_sha256": adapters,
            },
            "seeds": SEEDS,
            "model": identity(bench.model),
            "data": {"test": bench.data["test"]},
        }
    )
    split = SplitModel(bench.model, LAYER)
    prefix = split.prefix(ids, progress=True)

    def measure(adapter: str | None, case: Case | None = None) -> dict[str, Any]:
        with ExitStack() as stack:
            if adapter:
                loaded = stack.enter_context(attached(bench.model, ADAPTERS / adapter))
            if case:
                chains = places[case.device, QUBITS.get(case.blocks, 2)]
                noise, dealt = noises[case.device], deal(chains, case.seed)
                execution = Execution(case.circuit, case.readout, case.shots, noise, dealt, case.mitigation, case.seed)
                stack.enter_context(run_on_circuits(loaded, execution))
            measured = perplexity(bench.model, ids, split=split, prefix=prefix)
        return run_of(measured)

    work: dict[str, tuple[str | None, Case | None]] = {"base": (None, None)}
    for case in cases():
        folder = folders[case.blocks][SEEDS.index(case.seed)]
        work |= {case.exact: (folder, None), case.key: (folder, case)}
    if not record.fill(work, lambda key: measure(*work[key])):
        return record.result
    return record.finish(headline(record.result["runs"]))


def deal(chains: list[tuple[int, ...]], seed: int) -> list[tuple[int, ...]]:
    """The chains in a random order, so that each seed has other blocks on the bad ones."""
    return [chains[i] for i in np.random.default_rng(seed).permutation(len(chains))]


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Noise penalties, with intervals over seeds where there are several, and over windows of text; and the change of
    perplexity against the base model that is left."""
    alike: dict[str, list[Case]] = {}
    for case in cases():
        alike.setdefault(case.label, []).append(case)

    def over_seeds(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
        return mean_interval([percent_change(run, reference) for run, reference in pairs], "%")

    numbers = {}
    for label, same in alike.items():
        to_exact = [(runs[case.key], runs[case.exact]) for case in same]
        numbers[f"penalty_{label}"] = over_seeds(to_exact)
        numbers[f"penalty_over_text_{label}"] = change_over_text(to_exact)
        numbers[f"penalty_seed{SEEDS[0]}_{label}"] = change_over_text(to_exact[:1])
        numbers[f"change_{label}"] = over_seeds([(runs[case.key], runs["base"]) for case in same])
    return numbers
