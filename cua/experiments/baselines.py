"""Adapters of PEFT against ours at equal parameters: the same text, steps and windows.

Places and learning rates are those that :mod:`.baseline_selection` chose; ours are the recorded runs of
:mod:`.budgets`, on the same windows of the test split and with the same seeds.
"""

import itertools
from dataclasses import replace
from typing import Any

from cua.experiments.baseline_methods import METHODS
from cua.experiments.baseline_selection import BUDGETS, best_places, best_rate, prepare, tried_rates
from cua.experiments.baseline_selection import NAME as SELECTION
from cua.experiments.bench import Bench
from cua.experiments.budgets import BUDGETS as OURS
from cua.experiments.protocol import change_over_seeds_and_text, schedule
from cua.experiments.record import ADAPTERS, Record, load_complete, point
from cua.llm.models import identity

NAME = "baselines"
QUESTION = "Which adapter lowers test perplexity most at about 1,000, 6,000 and 25,000 parameters: ours or one of PEFT?"
SEEDS = (0, 1, 2, 3, 4)
EVERY = 4  # windows of the test split
TRAINING = replace(OURS[0].training, max_k_norm=None)
OUR_READOUTS = ("exact", "sign-constrained")


def run() -> dict[str, Any]:
    """Every method that fits a budget, every seed of it.

    Raises:
        FileNotFoundError: if the selection or a study of ours is missing, naming the command that records it.
        ValueError: if one of them is not complete, or ours are of another model or text.
    """
    selection = load_complete(SELECTION)
    studies = {label: load_complete(study.name) for label, study in zip(BUDGETS, OURS, strict=True)}
    ours = {label: study["runs"] for label, study in studies.items()}
    chosen = choices(selection["runs"])
    full = Bench.prepare(test=True)
    bench = measured_part(full)
    for study in studies.values():
        check_same(study, bench)
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "training": schedule(TRAINING),
                "every": EVERY,
                "chosen": chosen,
            },
            "seeds": SEEDS,
            "model": identity(bench.model),
            "data": bench.data,
        }
    )
    work = {f"{label}/seed{seed}": (label, seed) for seed in SEEDS for label in chosen}

    def make(key: str) -> dict[str, Any]:
        if key == "base":
            return bench.measure("test", 0)
        label, seed = work[key]
        place, modules = chosen[label]["place"], chosen[label]["modules"]
        config = METHODS[label.partition("/")[0]](modules)
        training = replace(TRAINING, learning_rate=chosen[label]["rate"], seed=seed)
        folder = ADAPTERS / NAME / key if label.startswith("lora/") or seed == 0 else None
        return bench.fit_peft(config, training, "test", 0, folder, prepare(bench, place, modules))

    if not record.fill(["base", *work], make):
        return record.result
    return record.finish(headline(record.result["runs"], ours))


def check_same(result: dict[str, Any], bench: Bench) -> None:
    """Raise a ValueError if something was recorded with another model or text than there is here."""
    if result["model"] != identity(bench.model) or _digests(result["data"]) != _digests(bench.data):
        raise ValueError(f"{result['name']} was recorded with another model or text than there is here")


def _digests(data: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: of["sha256"] for name, of in data.items()}


def choices(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Place, modules and rate by ``METHOD/BUDGET``, from the runs of the selection."""
    return {
        label: {"place": cell, "modules": runs[cell]["modules"], "rate": best_rate(tried_rates(runs, cell))}
        for label, cell in best_places(runs).items()
    }


def headline(runs: dict[str, Any], ours: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Change of perplexity of every method and ours, and of ours against each; for other seeds and other text."""
    base, numbers = runs["base"], {}
    for label in BUDGETS:
        mine = {
            f"cua_{readout.replace('-', '_')}": [same_windows(ours[label][f"{readout}-seed{seed}"]) for seed in SEEDS]
            for readout in OUR_READOUTS
        }
        fitting = [method for method in METHODS if f"{method}/{label}/seed0" in runs]
        methods = {method: [runs[f"{method}/{label}/seed{seed}"] for seed in SEEDS] for method in fitting}
        for name, seeds in (mine | methods).items():
            numbers[f"{name}_{label}_parameters"] = point(seeds[0]["parameters"], "parameters")
            numbers[f"{name}_{label}_change"] = change_over_seeds_and_text([[(run, base) for run in seeds]])
        for (name, own), (method, seeds) in itertools.product(mine.items(), methods.items()):
            pairs = list(zip(own, seeds, strict=True))
            numbers[f"{name}_against_{method}_{label}"] = change_over_seeds_and_text([pairs])
    return numbers


def measured_part(full: Bench) -> Bench:
    """The bench with the windows of the test split that are measured here."""
    return Bench(full.model, full.tokens | {"test": full.tokens["test"][::EVERY]}, full.data)


def same_windows(run: dict[str, Any]) -> dict[str, Any]:
    """A run over the whole test split, reduced to the windows of :func:`measured_part`."""
    losses = run["nll"][::EVERY]
    tokens = run["tokens"] * len(losses) // len(run["nll"])
    return {"parameters": run["parameters"], "nll": losses, "tokens": tokens}
