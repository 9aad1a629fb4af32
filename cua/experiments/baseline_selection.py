"""Adapters of PEFT at our budgets: where each method goes and how fast it learns, chosen on validation text.

Every method gets what our blocks got (:mod:`cua.experiments.placement`, :mod:`.rate_selection`): the same training
windows, one gradient to choose modules by, several projections to choose from, several learning rates.  A method's
gradient is that of its own parameters as they start out; modules with the largest sum of absolute slopes for each of
their parameters come first, as long as the budget lasts.  Low-rank matrices start out in a random direction, and a
module's slopes can change by a factor of five with it: theirs are means over several directions.  A first search had
them from one; what it chose is kept as a candidate where it chose otherwise ("-one").

Each place is tried with few steps at one rate, that of our search ("oft": half of it, which moves its blocks as far).
The best place is tried twice more: with what is left of the budget spent on the steepest other modules ("-fill"), and
with as many modules of its projections spread evenly over the layers ("-even").  At the best of all, with half the
steps of the final runs and on more text, the rate is halved and doubled for as long as that helps.

LoRA gets one thing more that our blocks have, directions from the gradient ("-gradient"): A starts along the top right
singular vector of dL/dW, as long as PEFT draws it, and modules are chosen by the slopes that B has then.

"scales" is a control, and no method of PEFT: scales of single components, as IA³ has them, but those with the steepest
slopes anywhere.  It has our choice of components and no rotation.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from cua.experiments.baseline_methods import (
    DIRECTION_NORM,
    DIRECTIONS,
    METHODS,
    scale_slopes,
    settings,
    start_along,
    steepest,
    steepest_along_gradient,
    steepest_entries,
)
from cua.experiments.bench import Bench
from cua.experiments.budgets import BUDGETS as OURS
from cua.experiments.placement import EVERY, PROJECTIONS, TRAINING
from cua.experiments.protocol import percent_change, used
from cua.experiments.rate_selection import BUDGET as BUDGET_RATES
from cua.experiments.record import Record, point
from cua.llm.baselines import PeftAdapter
from cua.llm.models import identity
from cua.llm.placement import GRADIENT_WINDOWS
from cua.llm.train import TrainConfig

NAME = "baseline_selection"
QUESTION = "Where does each method of PEFT lower held-out validation perplexity most, and at which learning rate?"
BUDGETS = {"1k": 1000, "6k": 6144, "25k": 25920}  # parameters at most
PLACES = (("v_proj",), ("down_proj",), ("v_proj", "o_proj", "down_proj"), PROJECTIONS)
PACE = {"oft": 0.5}  # rates as a multiple of ours where not 1: the K of OFT is half of ours
VARIANTS = ("gradient", "one", "fill", "even", "scales")
STEPS, FIRST_RATE = BUDGET_RATES.steps, OURS[0].training.learning_rate  # of the search for a rate; ours has been found


def prepare(bench: Bench, cell: str, modules: list[str]) -> Callable[[PeftAdapter], None] | None:
    """What is to be done with a fresh adapter of a place before it is trained, if anything."""
    method, label, place = cell.split("/")
    if "-gradient" in place:
        gradients = bench.weight_gradients(modules)
        return lambda adapter: start_along(gradients, adapter)
    if method == "scales":
        gradients = bench.weight_gradients(modules)
        return lambda adapter: adapter.keep(
            steepest_entries(scale_slopes(bench.model, gradients, adapter), BUDGETS[label])
        )
    return None


def choose_modules(slopes: dict[str, tuple[float, int]], budget: int) -> list[str]:
    """The modules with the steepest slopes for each parameter, as long as they fit; none if not even one does."""
    chosen, left = [], budget
    for name, (_, size) in sorted(slopes.items(), key=lambda item: -item[1][0] / item[1][1]):
        if size <= left:
            chosen.append(name)
            left -= size
    return [name for name in slopes if name in chosen]


def cells(slopes: dict[str, dict[str, tuple[float, int]]]) -> dict[str, tuple[str, list[str]]]:
    """Method and modules by ``METHOD/BUDGET/PLACE``: places where a module fits, those with the same modules once.

    Args:
        slopes: of every module that they are known for, by METHOD, METHOD-one or METHOD-gradient.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for name, everywhere in slopes.items():
        method, _, variant = name.partition("-")
        for label, budget in BUDGETS.items():
            for place in PLACES:
                mine = {module: value for module, value in everywhere.items() if module.endswith(place)}
                where = _named(place) + (variant and f"-{variant}")
                _add(found, f"{method}/{label}/{where}", choose_modules(mine, budget))
    for label in BUDGETS:
        for place in PLACES[-2:]:
            modules = [module for module in slopes["ia3"] if module.endswith(place)]
            _add(found, f"scales/{label}/{_named(place)}", modules)
    return found


def _named(place: tuple[str, ...]) -> str:
    return "all" if place == PROJECTIONS else "+".join(place)


def variants(
    best: dict[str, tuple[str, list[str]]], slopes: dict[str, dict[str, tuple[float, int]]]
) -> dict[str, tuple[str, list[str]]]:
    """Of the best places so far: what is left of the budget spent ("-fill"), and modules spread evenly ("-even")."""
    found = dict(best)
    for cell, (method, modules) in best.items():
        if method == "scales":
            continue
        mine = slopes[f"{method}-gradient" if cell.endswith("-gradient") else method]
        left = BUDGETS[cell.split("/")[1]] - sum(mine[module][1] for module in modules)
        more = choose_modules({m: value for m, value in mine.items() if m not in modules}, left)
        _add(found, f"{cell}-fill", [module for module in mine if module in modules or module in more])
        spread: list[str] = []
        for projection in dict.fromkeys(module.rpartition(".")[2] for module in modules):
            every = [module for module in mine if module.endswith(f".{projection}")]
            count = sum(module.endswith(f".{projection}") for module in modules)
            spread += [every[int((i + 0.5) * len(every) / count)] for i in range(count)]
        _add(found, f"{cell}-even", [module for module in mine if module in spread])
    return {cell: place for cell, place in found.items() if cell not in best}


def _add(found: dict[str, tuple[str, list[str]]], cell: str, modules: list[str]) -> None:
    """Add a place of its own."""
    label, _, place = cell.rpartition("/")
    same = (key for key in found if key.startswith(f"{label}/") and ("-gradient" in key) == ("-gradient" in place))
    if modules and modules not in [found[key][1] for key in same]:
        found[cell] = label.partition("/")[0], modules


def run() -> dict[str, Any]:
    """Every place at one rate, then the best place of each method and budget at several rates; one seed."""
    full = Bench.prepare(test=False)
    train = full.tokens["train"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    tokens = {"train": train[order[: TRAINING.steps]], "selection": full.tokens["selection"][::EVERY]}
    few = Bench(full.model, tokens, full.data)
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "methods": {name: settings(method(["v_proj"])) for name, method in METHODS.items()},
                "budgets": BUDGETS,
                "places": PLACES,
                "directions": DIRECTIONS,
                "gradient_windows": GRADIENT_WINDOWS,
                "training": used(TRAINING),
                "every": EVERY,
                "pace": PACE,
                "direction_norm": DIRECTION_NORM,
                "variants": VARIANTS,
                "rates": {"steps": STEPS, "first": FIRST_RATE},
            },
            "seeds": [TRAINING.seed],
            "model": identity(full.model),
            "data": full.data,
        }
    )
    steep = partial(steepest, full.model, full.gradient_windows)
    slopes = {f"slopes/{method}": partial(steep, method, PROJECTIONS) for method in METHODS if method != "scales"}
    slopes |= {f"slopes/{method}-one": partial(steep, method, PLACES[-2], 1) for method in ("lora", "dora")}
    names = [name for name, _ in full.model.named_modules() if name.endswith(PROJECTIONS)]
    slopes["slopes/lora-gradient"] = lambda: steepest_along_gradient(full.weight_gradients(names))
    if not record.fill(slopes, lambda key: {"of": slopes[key]()}):
        return record.result
    known = {key.removeprefix("slopes/"): record.result["runs"][key]["of"] for key in slopes}
    work = cells(known)

    def fit(bench: Bench, cell: str, training: TrainConfig) -> dict[str, Any]:
        method, modules = work[cell]
        ready = prepare(full, cell, modules)
        run = bench.fit_peft(METHODS[method](modules), training, "selection", 0, prepare=ready)
        return run | {"rate": training.learning_rate, "modules": modules}

    def at_a_place(key: str) -> dict[str, Any]:
        if key in ("base", "base-rate"):
            return (few if key == "base" else full).measure("selection", 0)
        rate = TRAINING.learning_rate * PACE.get(work[key][0], 1)
        return fit(few, key, replace(TRAINING, learning_rate=rate))

    first = list(work)
    if not record.fill(["base", "base-rate", *first], at_a_place):
        return record.result
    best = best_places({key: record.result["runs"][key] for key in first}).values()
    more = variants({cell: work[cell] for cell in best}, known)
    work |= more
    if not record.fill(more, at_a_place):
        return record.result

    def at_a_rate(key: str) -> dict[str, Any]:
        cell, rate = rest[key]
        return fit(full, cell, replace(TRAINING, steps=STEPS, learning_rate=rate))

    while rest := next_rates(record.result["runs"]):
        if not record.fill(rest, at_a_rate):
            return record.result
    return record.finish(headline(record.result["runs"]))


def best_places(runs: dict[str, Any]) -> dict[str, str]:
    """The place with the lowest perplexity, by ``METHOD/BUDGET``."""
    best: dict[str, str] = {}
    for key in runs:
        if key.count("/") == 2 and "-rate" not in key:  # METHOD/BUDGET/PLACE
            label, _, _ = key.rpartition("/")
            if label not in best or runs[key]["perplexity"] < runs[best[label]]["perplexity"]:
                best[label] = key
    return best


def tried_rates(runs: dict[str, Any], cell: str) -> dict[float, dict[str, Any]]:
    """The longer runs of one place by their rate."""
    return {run["rate"]: run for key, run in runs.items() if key.startswith(f"{cell}-rate")}


def best_rate(tried: dict[float, dict[str, Any]]) -> float:
    """The rate with the lowest perplexity."""
    return min(tried, key=lambda rate: tried[rate]["perplexity"])


def next_rates(runs: dict[str, Any]) -> dict[str, tuple[str, float]]:
    """Place and rate of the runs to be made next: half and twice the best rate so far, until both have been tried."""
    wanted = {}
    for label, cell in best_places(runs).items():
        tried = tried_rates(runs, cell)
        best = best_rate(tried) if tried else FIRST_RATE * PACE.get(label.partition("/")[0], 1)
        wanted |= {f"{cell}-rate{rate}": (cell, rate) for rate in (best, best / 2, best * 2) if rate not in tried}
    return wanted


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of each method and budget: parameters, best rate, and the change of perplexity there."""
    numbers = {}
    for label, cell in best_places(runs).items():
        tried = tried_rates(runs, cell)
        rate = best_rate(tried)
        name = label.replace("/", "_")
        numbers[f"{name}_parameters"] = point(runs[cell]["parameters"], "parameters")
        numbers[f"{name}_rate"] = point(rate, "1")
        numbers[f"{name}_change"] = point(percent_change(tried[rate], runs["base-rate"]), "%")
    return numbers
