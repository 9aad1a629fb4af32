"""Adapters of PEFT against ours at equal parameters: the same text, steps and windows, five seeds.

Places and learning rates are those that :mod:`.baseline_selection` chose; ours are the recorded runs of
:mod:`.budgets`, on the same windows of the test split.
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np

from cua.experiments.baseline_selection import BUDGETS, METHODS, best_places, best_rate, prepare, tried_rates
from cua.experiments.baseline_selection import NAME as SELECTION
from cua.experiments.bench import Bench
from cua.experiments.budgets import BUDGETS as OURS
from cua.experiments.protocol import change_over_text, mean_interval, percent_change, used
from cua.experiments.record import ADAPTERS, Record, load_complete, load_result, point
from cua.llm.models import identity

NAME = "baselines"
QUESTION = "Which adapter lowers test perplexity most at about 1,000, 6,000 and 25,000 parameters: ours or one of PEFT?"
SEEDS, EVERY = (0, 1, 2, 3, 4), 4  # every fourth window of the test split
TRAINING = replace(OURS[0].training, max_k_norm=None)
READOUTS = ("exact", "sign-constrained")


def run() -> dict[str, Any]:
    """Every method that fits a budget, every seed.

    Raises:
        FileNotFoundError: if the selection or a study of ours is missing, naming the command that records it.
        ValueError: if the selection is not complete.
    """
    selection = load_complete(SELECTION)
    ours = {label: load_result(study.name)["runs"] for label, study in zip(BUDGETS, OURS, strict=True)}
    chosen = {label: _chosen(selection["runs"], cell) for label, cell in best_places(selection["runs"]).items()}
    full = Bench.prepare(test=True)
    bench = Bench(full.model, full.tokens | {"test": full.tokens["test"][::EVERY]}, full.data)
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "training": {k: v for k, v in used(TRAINING).items() if k not in ("seed", "learning_rate")},
                "every": EVERY,
                "chosen": chosen,
            },
            "seeds": SEEDS,
            "model": identity(bench.model),
            "data": bench.data,
        }
    )
    work = {f"{label}/seed{seed}": (label, seed) for seed in SEEDS for label in chosen}
    for key in record.missing(["base", *work]):
        started = time.perf_counter()
        if key == "base":
            run = bench.measure("test", 0)
        else:
            label, seed = work[key]
            place, modules = chosen[label]["place"], chosen[label]["modules"]
            config = METHODS[label.partition("/")[0]](modules)
            training = replace(TRAINING, learning_rate=chosen[label]["rate"], seed=seed)
            folder = ADAPTERS / NAME / key if label.startswith("lora/") or seed == 0 else None
            run = bench.fit_peft(config, training, "test", 0, folder, prepare(bench, place, modules))
        record.add(key, run, time.perf_counter() - started)
        print(f"{key}: perplexity {run['perplexity']:.3f}", flush=True)
    if not record.has("base", *work):
        return record.result
    return record.finish(headline(record.result["runs"], ours))


def _chosen(runs: dict[str, Any], cell: str) -> dict[str, Any]:
    return {"place": cell, "modules": runs[cell]["modules"], "rate": best_rate(tried_rates(runs, cell))}


def headline(runs: dict[str, Any], ours: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Change of perplexity of every method and of ours, and ours against each method; over seeds, and over text."""
    base, numbers = runs["base"], {}
    for label in BUDGETS:
        mine = {
            readout: [_same_windows(ours[label][f"{readout}-seed{seed}"]) for seed in SEEDS] for readout in READOUTS
        }
        methods = {m: [runs[f"{m}/{label}/seed{s}"] for s in SEEDS] for m in METHODS if f"{m}/{label}/seed0" in runs}
        everyone = {f"cua_{readout.replace('-', '_')}": mine[readout] for readout in READOUTS} | methods
        for name, seeds in everyone.items():
            numbers[f"{name}_{label}_parameters"] = point(seeds[0]["parameters"], "parameters")
            numbers[f"{name}_{label}_change"] = mean_interval([percent_change(run, base) for run in seeds], "%")
            numbers[f"{name}_{label}_change_over_text"] = change_over_text([(run, base) for run in seeds])
        for method, seeds in methods.items():
            pairs = list(zip(mine["exact"], seeds, strict=True))
            numbers[f"cua_against_{method}_{label}"] = mean_interval([percent_change(*pair) for pair in pairs], "%")
            numbers[f"cua_against_{method}_{label}_over_text"] = change_over_text(pairs)
    return numbers


def _same_windows(run: dict[str, Any]) -> dict[str, Any]:
    """A run over the whole test split, reduced to the windows that are measured here."""
    losses = run["nll"][::EVERY]
    tokens = run["tokens"] * len(losses) // len(run["nll"])
    return {
        "parameters": run["parameters"],
        "nll": losses,
        "tokens": tokens,
        "perplexity": float(np.exp(sum(losses) / tokens)),
    }
