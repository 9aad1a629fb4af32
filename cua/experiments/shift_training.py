"""Training with gradients that a quantum computer could measure: how few shots do they need?

The parameter-shift rule of :mod:`cua.quantum.shift` on perfect qubits, all eight settings with the same number of
shots, beside the exact gradient; the paper's placement on the embedded model, read exactly when it is measured.
"""

from dataclasses import replace
from typing import Any

import torch
from qiskit_ibm_runtime.fake_provider import FakeMarrakesh

import cua
from cua.experiments.bench import Bench
from cua.experiments.protocol import change_over_seeds_and_text, mean_interval, percent_change, used
from cua.experiments.record import Record
from cua.experiments.v_proj import BOUNDED
from cua.hybrid import train_on_device
from cua.llm.models import identity
from cua.llm.prefix import SplitModel
from cua.llm.train import train
from cua.quantum.layout import disjoint_paths
from cua.quantum.packing import PackedCircuit
from cua.quantum.plan import PerfectQubits

NAME = "shift_training"
QUESTION = "How much does an adapter lose that is trained with measured gradients, by the number of shots?"
SHOTS = (16, 256, 4096)
SEEDS = (0, 1, 2)
TRAINING = replace(BOUNDED.training, steps=60)


def run() -> dict[str, Any]:
    """Exact gradients and measured ones, every seed; on the text that chooses, not on test text."""
    bench = Bench.prepare(test=False)
    backend = FakeMarrakesh()
    packed = PackedCircuit(backend, disjoint_paths(backend, 2, limit=48, cutoff=5), rounds=3)
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {"training": used(TRAINING), "adapter": used(BOUNDED.adapter), "shots": SHOTS},
            "seeds": SEEDS,
            "model": identity(bench.model),
            "data": bench.data,
        }
    )
    layer = min(BOUNDED.adapter.layers or (0,))
    work = {f"{shots or 'exact'}/seed{seed}": (shots, seed) for seed in SEEDS for shots in (None, *SHOTS)}

    def make(key: str) -> dict[str, Any]:
        return bench.measure("selection", layer) if key == "base" else _train(bench, packed, layer, *work[key])

    if not record.fill(["base", *work], make):
        return record.result
    return record.finish(headline(record.result["runs"]))


def _train(bench: Bench, packed: PackedCircuit, layer: int, shots: int | None, seed: int) -> dict[str, Any]:
    adapter = cua.attach(bench.model, BOUNDED.adapter)
    options = {"split": SplitModel(bench.model, layer), "prefix": bench.prefix("train", layer), "progress": True}
    options["config"] = replace(TRAINING, seed=seed)
    try:
        if shots is None:
            losses = train(bench.model, adapter, bench.tokens["train"], **options)
        else:
            with train_on_device(adapter, PerfectQubits(packed, shots, seed)):
                losses = train(bench.model, adapter, bench.tokens["train"], **options)
        with torch.no_grad():
            measured = bench.measure("selection", layer)
    finally:
        adapter.detach()
    return {"train_loss": [round(loss, 5) for loss in losses]} | measured


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Change of perplexity by the number of shots, and against exact gradients, seed by seed."""
    numbers = {}
    for shots in ("exact", *map(str, SHOTS)):
        mine = [runs[f"{shots}/seed{seed}"] for seed in SEEDS]
        numbers[f"change_{shots}"] = mean_interval([percent_change(run, runs["base"]) for run in mine], "%")
        if shots != "exact":
            exact = [runs[f"exact/seed{seed}"] for seed in SEEDS]
            numbers[f"against_exact_{shots}"] = change_over_seeds_and_text([list(zip(mine, exact, strict=True))])
    return numbers
