"""Learning rates for :mod:`cua.experiments.compression`, chosen on validation text, with and without compression."""

from dataclasses import asdict, replace
from functools import partial
from typing import Any

from cua.experiments.bench import Bench
from cua.experiments.compression import (
    ADAPTER,
    BLOCKS,
    CALIBRATION,
    CLAIMED,
    COMPRESSIONS,
    LORA,
    TRAINING,
    compressed,
    fit,
)
from cua.experiments.protocol import used
from cua.experiments.record import Record, point
from cua.llm.models import identity

NAME = "compression_rates"
QUESTION = "Which learning rate lowers held-out validation perplexity most, on the original and on a compressed model?"
GRID = {"cua": (0.005, 0.01, 0.02, 0.04), "lora": (0.0025, 0.005, 0.01, 0.02, 0.04)}
EVERY = 3  # every third window of the selection split


def run() -> dict[str, Any]:
    """Each rate once on each model."""
    full = Bench.prepare(test=False)
    tokens = full.tokens | {"selection": full.tokens["selection"][::EVERY]}
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "compression": asdict(COMPRESSIONS[CLAIMED]),
                "calibration_windows": CALIBRATION,
                "adapter": used(ADAPTER),
                "blocks": dict(BLOCKS),
                "lora": LORA,
                "grid": GRID,
                "training": {k: v for k, v in used(TRAINING).items() if k != "learning_rate"},
                "every": EVERY,
            },
            "seeds": [TRAINING.seed],
            "model": identity(full.model),
            "data": full.data,
        }
    )
    kinds = {f"{kind}/rate{rate}": (kind, rate) for kind, rates in GRID.items() for rate in rates}
    names = {model: [model, *(f"{model}/{key}" for key in kinds)] for model in ("original", CLAIMED)}

    def make(model: str, bench: Bench, key: str) -> dict[str, Any]:
        if key == model:
            return bench.measure("selection", 0)
        kind, rate = kinds[key.removeprefix(f"{model}/")]
        return fit(bench, kind, replace(TRAINING, learning_rate=rate), "selection")

    for model, keys in names.items():
        if not record.has(*keys):
            with compressed(full, COMPRESSIONS.get(model)):
                record.fill(keys, partial(make, model, Bench(full.model, tokens, full.data)))
    if not record.has(*(key for keys in names.values() for key in keys)):
        return record.result
    return record.finish(headline(record.result["runs"]))


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The best rates."""
    numbers = {}
    for model in ("original", CLAIMED):
        for kind, rates in GRID.items():
            best = min(rates, key=lambda rate, start=f"{model}/{kind}/rate": runs[f"{start}{rate}"]["perplexity"])
            numbers[f"{model}_{kind}_rate"] = point(best, "1")
    return numbers
