"""What adapters win back of a compressed model's loss, with controls for what is mere adaptation to the text.

With P the perplexity of the original model, C of the compressed one and A of the compressed one with its adapter, the
recovered share is (C - A) / (C - P).  It counts adaptation to WikiText as recovery.  So the original is trained in the
same way, to perplexity P', and the **net share** says how much of the gap between the two models, in nats a token, is
closed when both are adapted: 1 - ln(A / P') / ln(C / P).
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from peft import LoraConfig

from cua import CUAConfig
from cua.experiments.bench import Bench
from cua.experiments.protocol import mean_interval, percent_change, used
from cua.experiments.record import Record, point
from cua.llm.compression import Compression, compress, input_moments
from cua.llm.models import identity
from cua.llm.placement import choose_groups
from cua.llm.train import TrainConfig

NAME = "compression"
QUESTION = "How much of a compressed model's loss do adapters win back, and how much of that is adaptation to the text?"
EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
COMPRESSIONS = {
    "svd_mild": Compression("svd", layers=tuple(range(1, 30, 3))),
    "svd_strong": Compression("svd", layers=tuple(i for i in range(30) if i % 3)),
    "tensor_train_mild": Compression("tensor train", layers=tuple(range(1, 30, 6))),
    "tensor_train_strong": Compression("tensor train", layers=tuple(range(1, 30, 3))),
    "quantised_mild": Compression("quantised", target_modules=EVERY_LINEAR, bits=4, group=64),
    "quantised_strong": Compression("quantised", target_modules=EVERY_LINEAR, bits=3, group=32),
}
CLAIMED = "svd_mild"  # five seeds, and LoRA beside it; the others three
WINDOWS = 48  # of the test split, spread evenly
CALIBRATION = 16  # windows of the train split, spread evenly, behind the moments of the inputs
ADAPTER, N_BLOCKS = CUAConfig(), 4320  # chosen blocks on the inputs of all v_proj: 25,920 parameters
LORA = {"r": 1, "lora_alpha": 1, "target_modules": ["v_proj"]}  # 23,040 parameters
TRAINING = TrainConfig(steps=60, learning_rate=0.02, warmup=10)
LORA_RATE = 0.005
RATES_NAME = "compression_rates"
RATES_QUESTION = "Which learning rate wins back most of a compressed model's loss on held-out validation text?"
RATES = {"cua": (0.01, 0.02, 0.04), "lora": (0.0025, 0.005, 0.01)}
EVERY = 3  # every third window of the selection split, to choose the rates by


@contextmanager
def compressed(bench: Bench, compression: Compression | None) -> Iterator[float]:
    """Inside this context the bench's model is compressed; gives the share of bits that is left."""
    if compression is None:
        yield 1.0
        return
    tokens = bench.tokens["train"]
    spread = tokens[torch.linspace(0, len(tokens) - 1, CALIBRATION).long()]
    moments = input_moments(bench.model, spread, compression)
    weights = {name: bench.model.get_submodule(name).weight for name in moments}
    before = {name: weight.clone() for name, weight in weights.items()}
    try:
        yield compress(bench.model, compression, moments, progress=True)
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])


def seeds_of(model: str, kind: str) -> tuple[int, ...]:
    """Seeds of one model's adapters; LoRA stands beside the claimed compression and the original alone."""
    if model in (CLAIMED, "original"):
        return (0, 1, 2, 3, 4)
    return (0, 1, 2) if kind == "cua" else ()


def work() -> dict[str, list[tuple[str, str, int]]]:
    """Keys of all runs by model: the model itself, then its adapters."""
    return {
        model: [(model, "", 0)]
        + [(f"{model}/{kind}/seed{seed}", kind, seed) for kind in ("cua", "lora") for seed in seeds_of(model, kind)]
        for model in ("original", *COMPRESSIONS)
    }


def run() -> dict[str, Any]:
    """Every model with every adapter, on the same windows of the test split."""
    full = Bench.prepare(test=True)
    pick = torch.linspace(0, len(full.tokens["test"]) - 1, WINDOWS).long()
    tokens = {"train": full.tokens["train"], "test": full.tokens["test"][pick]}
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "compressions": {name: asdict(c) for name, c in COMPRESSIONS.items()},
                "windows": pick.tolist(),
                "calibration_windows": CALIBRATION,
                "adapter": used(ADAPTER),
                "n_blocks": N_BLOCKS,
                "lora": LORA,
                "lora_rate": LORA_RATE,
                "training": {k: v for k, v in used(TRAINING).items() if k != "seed"},
            },
            "seeds": [0, 1, 2, 3, 4],
            "model": identity(full.model),
            "data": full.data,
        }
    )
    everything = work()
    for model, runs in everything.items():
        if record.has(*(key for key, _, _ in runs)):
            continue
        with compressed(full, COMPRESSIONS.get(model)) as share:
            bench = Bench(full.model, tokens, full.data)
            kinds = {key: (kind, seed) for key, kind, seed in runs}
            for key in record.missing(kinds):
                started = time.perf_counter()
                run = _run(bench, *kinds[key])
                if key == model:
                    run["share_of_bits"] = share
                record.add(key, run, time.perf_counter() - started)
                print(f"{key}: perplexity {run['perplexity']:.3f}", flush=True)
    if not record.has(*(key for runs in everything.values() for key, _, _ in runs)):
        return record.result
    return record.finish(headline(record.result["runs"]))


def _run(bench: Bench, kind: str, seed: int) -> dict[str, Any]:
    if kind == "":
        return bench.measure("test", 0)
    rate = LORA_RATE if kind == "lora" else TRAINING.learning_rate
    return _fit(bench, kind, replace(TRAINING, seed=seed, learning_rate=rate), "test")


def _fit(bench: Bench, kind: str, training: TrainConfig, name: str) -> dict[str, Any]:
    if kind == "lora":
        return bench.fit_peft(LoraConfig(**LORA), training, name, 0)
    groups = choose_groups(bench.gradients(ADAPTER.target_modules, ADAPTER.side), ADAPTER.block_size, N_BLOCKS)
    return bench.fit(ADAPTER, training, None, name, groups, 0)


def run_rates() -> dict[str, Any]:
    """Each rate once, on the compressed model that a claim is made of; the best ones are constants of this module."""
    full = Bench.prepare(test=False)
    tokens = full.tokens | {"selection": full.tokens["selection"][::EVERY]}
    record = Record(
        {
            "name": RATES_NAME,
            "question": RATES_QUESTION,
            "config": {
                "compression": asdict(COMPRESSIONS[CLAIMED]),
                "calibration_windows": CALIBRATION,
                "adapter": used(ADAPTER),
                "n_blocks": N_BLOCKS,
                "lora": LORA,
                "rates": RATES,
                "training": {k: v for k, v in used(TRAINING).items() if k != "learning_rate"},
                "every": EVERY,
            },
            "seeds": [TRAINING.seed],
            "model": identity(full.model),
            "data": full.data,
        }
    )
    trained = {f"{kind}-rate{rate}": (kind, rate) for kind, rates in RATES.items() for rate in rates}
    with compressed(full, COMPRESSIONS[CLAIMED]):
        bench = Bench(full.model, tokens, full.data)
        for key in record.missing(["base", *trained]):
            started = time.perf_counter()
            if key == "base":
                run = bench.measure("selection", 0)
            else:
                kind, rate = trained[key]
                run = _fit(bench, kind, replace(TRAINING, learning_rate=rate), "selection")
            record.add(key, run, time.perf_counter() - started)
            print(f"{key}: perplexity {run['perplexity']:.3f}", flush=True)
    if not record.has("base", *trained):
        return record.result
    runs = record.result["runs"]
    best = {
        kind: min(rates, key=lambda rate, kind=kind: runs[f"{kind}-rate{rate}"]["perplexity"])
        for kind, rates in RATES.items()
    }
    return record.finish({f"{kind}_rate": point(rate, "1") for kind, rate in best.items()})


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each compression costs, and what is won back, in all and net of adaptation; over seeds."""
    original = runs["original"]

    def net(model: str, adapted: str, control: str) -> float:
        gap = math.log(runs[model]["perplexity"] / original["perplexity"])
        return 100 * (1 - math.log(runs[adapted]["perplexity"] / runs[control]["perplexity"]) / gap)

    numbers = {"original_perplexity": point(original["perplexity"], "perplexity")}
    for model in ("original", *COMPRESSIONS):
        compressed_model = runs[model]
        cost = compressed_model["perplexity"] - original["perplexity"]
        if model != "original":
            numbers[f"{model}_cost"] = point(percent_change(compressed_model, original), "%")
            numbers[f"{model}_share_of_bits"] = point(compressed_model["share_of_bits"], "1")
        for kind in ("cua", "lora"):
            adapted = {seed: runs[f"{model}/{kind}/seed{seed}"] for seed in seeds_of(model, kind)}
            if not adapted:
                continue
            changes = [percent_change(run, compressed_model) for run in adapted.values()]
            numbers[f"{model}_{kind}_change"] = mean_interval(changes, "%")
            if model == "original":
                continue
            shares = [100 * (compressed_model["perplexity"] - run["perplexity"]) / cost for run in adapted.values()]
            nets = [net(model, f"{model}/{kind}/seed{s}", f"original/{kind}/seed{s}") for s in adapted]
            numbers[f"{model}_{kind}_recovered"] = mean_interval(shares, "%")
            numbers[f"{model}_{kind}_recovered_net"] = mean_interval(nets, "%")
    return numbers
