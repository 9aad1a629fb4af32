"""Which layer, which learning rate: chosen on held-out validation text, never on test."""

from dataclasses import asdict
from typing import Any

import torch

import cua
from cua import CUAConfig
from cua.experiments.bench import Bench
from cua.experiments.protocol import used
from cua.experiments.record import Record, point
from cua.llm.models import identity
from cua.llm.placement import backward
from cua.llm.train import TrainConfig

NAME = "v_proj_selection"
QUESTION = "Which v_proj, and which learning rate, lowers held-out validation perplexity most with 4x4 blocks?"
SCORED_WINDOWS = 24  # training windows behind the gradient score
CANDIDATES = 4  # layers trained, best gradient score first; layer 15 is trained beside them as a reference
RATES = (0.005, 0.01, 0.02, 0.04)
TRAINING = TrainConfig(steps=120, learning_rate=0.02)
TRAINING_ALL = TrainConfig(steps=60, learning_rate=0.02)
ALL_RATES = (0.005, 0.01, 0.02)


def gradient_scores(bench: Bench) -> dict[str, Any]:
    """For every layer the L1 norm of the mean gradient at K = 0: the first-order loss decrease of a sign step.

    One backward pass of a model with blocks in every layer scores all layers at once.
    """
    adapter = cua.attach(bench.model, CUAConfig())
    try:
        order = torch.randperm(len(bench.tokens["train"]), generator=torch.Generator().manual_seed(0))
        backward(bench.model, bench.tokens["train"][order[:SCORED_WINDOWS]])
        return {"l1": [round(theta.grad.abs().sum().item(), 5) for theta in adapter.parameters()]}
    finally:
        adapter.detach()


def run() -> dict[str, Any]:
    """Score all layers, train the best few, then try learning rates; 25,920 parameters in all layers likewise."""
    bench = Bench.prepare(test=False)
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "training": used(TRAINING),
                "training_all": used(TRAINING_ALL),
                "rates": RATES,
                "all_rates": ALL_RATES,
                "candidates": CANDIDATES,
                "scored_windows": SCORED_WINDOWS,
            },
            "seeds": [0],
            "model": identity(bench.model),
            "data": bench.data,
        }
    )

    def fit(key: str, layers: tuple[int, ...] | None, training: TrainConfig) -> float:
        return record.once(key, lambda: bench.fit(CUAConfig(layers=layers), training, None, "selection"))["perplexity"]

    scores = record.once("gradient", lambda: gradient_scores(bench))["l1"]
    record.once("base", lambda: bench.measure("selection", 0))
    best = sorted(range(len(scores)), key=lambda layer: -scores[layer])[:CANDIDATES]
    trained = {layer: fit(f"layer{layer}", (layer,), TRAINING) for layer in sorted({*best, 15}, reverse=True)}
    layer = min(trained, key=trained.get)
    rates = {
        rate: fit(f"layer{layer}-rate{rate}", (layer,), TrainConfig(**asdict(TRAINING) | {"learning_rate": rate}))
        for rate in RATES
    }
    all_rates = {
        rate: fit(f"all-rate{rate}", None, TrainConfig(**asdict(TRAINING_ALL) | {"learning_rate": rate}))
        for rate in ALL_RATES
    }

    return record.finish(
        {
            "layer": point(layer, "decoder layer, counted from 0"),
            "learning_rate": point(min(rates, key=rates.get), "1"),
            "learning_rate_all": point(min(all_rates, key=all_rates.get), "1"),
        }
    )
