"""What device noise costs a trained adapter, by block size, circuit, shots and mitigation.

Adapters trained without noise, one v_proj, read exactly, are evaluated with their blocks run as noisy circuits.  The
**noise penalty** is the change of test perplexity against the same adapter evaluated exactly, window by window.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from qiskit_ibm_runtime import fake_provider

import cua
from cua.experiments.protocol import Bench, mean_interval
from cua.experiments.record import ADAPTERS, Record
from cua.hybrid import Execution, run_on_circuits
from cua.llm.evaluate import perplexity
from cua.llm.models import identity
from cua.llm.prefix import SplitModel
from cua.quantum.layout import disjoint_paths
from cua.quantum.noise import DeviceNoise

NAME = "noise_frontier"
QUESTION = "What does device noise cost a trained adapter, by block size, circuit, shots and mitigation?"
LAYER, WINDOWS = 20, 16
DEVICES = {
    "fake_torino": "FakeTorino",
    "fake_marrakesh": "FakeMarrakesh",
    "fake_boston": "FakeBoston",
}  # Heron r1, r2, r3
ADAPTER_STUDIES = {
    "2x2": "v_proj_2x2",
    "4x4": "v_proj_bounded",
    "8x8": "v_proj_8x8",
    "16x16": "v_proj_16x16",
    "butterfly": "v_proj_butterfly",
}
QUBITS = {"2x2": 1, "4x4": 2, "8x8": 3, "16x16": 4, "butterfly": 2}


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
        return "/".join(str(getattr(self, field)) for field in self.__dataclass_fields__)


def cases() -> Iterator[Case]:
    """The grid: everything with the first seed, the paper's 8,192 shots with all three."""
    pipelines = [
        *((size, "textbook", "true-signs") for size in ("2x2", "4x4", "8x8", "16x16")),
        ("4x4", "superdense", "true-signs"),
        ("4x4", "superdense", "sign-faithful"),
        ("butterfly", "superdense", "sign-faithful"),
    ]
    for seed in (0, 1, 2):
        for blocks, circuit, readout in pipelines:
            for device in DEVICES:
                for shots in (1024, 8192, 65536, None) if seed == 0 else (8192,):
                    for mitigation in ("none", "readout", "readout+depolarising"):
                        yield Case(blocks, circuit, readout, device, shots, mitigation, seed)


def run() -> dict[str, Any]:
    """Every case on the same windows, spread evenly over the test split."""
    bench = Bench.prepare(test=True)
    pick = torch.linspace(0, len(bench.tokens["test"]) - 1, WINDOWS).long()
    ids = bench.tokens["test"][pick]
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {"layer": LAYER, "windows": pick.tolist(), "devices": DEVICES, "adapters": ADAPTER_STUDIES},
            "seeds": [0, 1, 2],
            "model": identity(bench.model),
            "data": {"test": bench.data["test"]},
        }
    )
    split = SplitModel(bench.model, LAYER)
    prefix = split.prefix(ids, progress=True)
    noises = {name: DeviceNoise(getattr(fake_provider, cls)()) for name, cls in DEVICES.items()}
    places = {
        (name, qubits): tuple(disjoint_paths(getattr(fake_provider, cls)(), qubits))
        for name, cls in DEVICES.items()
        for qubits in set(QUBITS.values())
    }

    def measure(key: str, folder: str | None, execution: Execution | None = None) -> None:
        if record.has(key):
            return
        started = time.perf_counter()
        adapter = cua.load(bench.model, ADAPTERS / folder) if folder else None
        try:
            if execution is None:
                measured = perplexity(bench.model, ids, split=split, prefix=prefix)
            else:
                with run_on_circuits(adapter, execution):
                    measured = perplexity(bench.model, ids, split=split, prefix=prefix, progress=True)
        finally:
            if adapter is not None:
                adapter.detach()
        run = {"perplexity": measured.value, "tokens": measured.tokens, "nll": [round(n, 4) for n in measured.nll]}
        record.add(key, run, time.perf_counter() - started)

    measure("base", None)
    for case in cases():
        folder = f"{ADAPTER_STUDIES[case.blocks]}/exact-seed{case.seed}"
        exact = f"{case.blocks}/exact/{case.seed}"
        measure(exact, folder)
        place = places[case.device, QUBITS[case.blocks]]
        execution = Execution(
            case.circuit, case.readout, case.shots, noises[case.device], place, case.mitigation, case.seed
        )
        measure(case.key, folder, execution)
        print(case.key, f"{change(record.result['runs'], [(case.key, exact)])['value']:+.3f} %", flush=True)
    return record.finish(headline(record.result["runs"]))


def change(runs: dict[str, Any], pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Change of perplexity in per cent from the second run of each pair to the first, averaged over the pairs (seeds),
    with a 95 % interval over windows."""
    per_window = np.mean([np.array(runs[a]["nll"]) - np.array(runs[b]["nll"]) for a, b in pairs], axis=0)
    number = mean_interval(per_window * len(per_window) / runs[pairs[0][0]]["tokens"], "%")
    return {key: 100 * float(np.expm1(v)) if key != "unit" else v for key, v in number.items()}


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Noise penalty at 8,192 shots, all seeds, and what is left of the gain over the base model."""
    numbers = {}
    for case in cases():
        if case.seed == 0 and case.shots == 8192:
            same = [replace(case, seed=seed) for seed in (0, 1, 2)]
            label = f"{case.blocks}_{case.circuit}_{case.readout}_{case.device}_{case.mitigation}"
            label = label.replace("-", "_").replace("+", "_")
            exact = [f"{case.blocks}/exact/{c.seed}" for c in same]
            numbers[f"penalty_{label}"] = change(runs, [(c.key, e) for c, e in zip(same, exact, strict=True)])
            numbers[f"gain_{label}"] = change(runs, [(c.key, "base") for c in same])
    return numbers
