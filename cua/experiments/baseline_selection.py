"""Adapters of PEFT at our budgets: where each method goes and how fast it learns, chosen on validation text.

Every method gets what our blocks got (:mod:`.placement`, :mod:`.rate_selection`): the same training windows, one
gradient to choose modules by, several projections to choose from, several learning rates.  A method's gradient is that
of its own parameters as they start out; modules with the largest sum of absolute slopes for each of their parameters
come first, as long as the budget lasts.  Low-rank matrices start out in a random direction, and a module's slopes can
change by a factor of five with it: theirs are means over several directions.  A first search had them from one; what it
chose is kept as a candidate where it chose otherwise ("-one").

Each place is tried with few steps at one rate, that of our search ("oft": half of it, which moves its blocks as far).
The best place is tried twice more: with what is left of the budget spent on the steepest other modules ("-fill"), and
with as many modules of its projections spread evenly over the layers ("-even").  At the best of all, with half the
steps of the final runs and on more text, the rate is halved and doubled for as long as that helps.

LoRA gets one thing more that our blocks have, directions from the gradient ("-gradient"): A starts along the top right
singular vector of dL/dW, as long as PEFT draws it, and modules are chosen by the slopes that B has then.

"scales" is a control, and no method of PEFT: scales of single components, as IA³ has them, but those with the steepest
slopes anywhere.  It has our choice of components and no rotation.

BOFT is left out: without its CUDA extension PEFT has it with a single factor, which is OFT with trained scales.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from peft import IA3Config, LoraConfig, OFTConfig, PeftConfig, VeraConfig
from torch import Tensor
from transformers import LlamaForCausalLM

from cua.experiments.bench import GRADIENT_WINDOWS, Bench
from cua.experiments.budgets import BUDGETS as OURS
from cua.experiments.placement import EVERY, PROJECTIONS, TRAINING
from cua.experiments.protocol import percent_change, used
from cua.experiments.rate_selection import BUDGET as BUDGET_RATES
from cua.experiments.record import Record, point
from cua.llm.baselines import PeftAdapter
from cua.llm.models import identity
from cua.llm.prefix import SplitModel
from cua.llm.train import TrainConfig

NAME = "baseline_selection"
QUESTION = "Where does each method of PEFT lower held-out validation perplexity most, and at which learning rate?"
BUDGETS = {"1k": 1000, "6k": 6144, "25k": 25920}  # parameters at most
PLACES = (("v_proj",), ("down_proj",), ("v_proj", "o_proj", "down_proj"), PROJECTIONS)
DIRECTIONS = 16  # that the slopes of low-rank matrices are means over
PACE = {"oft": 0.5}  # rates as a multiple of ours where not 1: the K of OFT is half of ours
VARIANTS = ("gradient", "one", "fill", "even", "scales")
DIRECTION_NORM = 3**-0.5  # of A in LoRA as PEFT draws it: uniform up to 1 / sqrt(inputs)
STEPS, FIRST_RATE = BUDGET_RATES.steps, OURS[0].training.learning_rate  # of the search for a rate; ours has been found


def _ia3(modules: list[str]) -> IA3Config:
    return IA3Config(target_modules=modules, feedforward_modules=[m for m in modules if m.endswith("down_proj")])


METHODS: dict[str, Callable[[list[str]], PeftConfig]] = {
    "lora": lambda modules: LoraConfig(r=1, lora_alpha=1, target_modules=modules),
    "dora": lambda modules: LoraConfig(r=1, lora_alpha=1, target_modules=modules, use_dora=True),
    "oft": lambda modules: OFTConfig(r=0, oft_block_size=4, target_modules=modules, use_cayley_neumann=False),
    "ia3": _ia3,
    "vera": lambda modules: VeraConfig(r=64, target_modules=modules, save_projection=False),
    "scales": _ia3,  # of which only some are trained, see prepare
}


def steepest(
    model: LlamaForCausalLM, windows: Tensor, method: str, places: Iterable[str], directions: int = DIRECTIONS
) -> dict[str, tuple[float, int]]:
    """Sum of the absolute slopes, and number of the parameters, that a method has on each module, by its name.

    Slopes are those of the mean loss over ``windows``, at the method's initial values with seed 0; of low-rank matrices
    the mean over ``directions``, which is had by as many ranks at once.
    """
    modules = [name for name, _ in model.named_modules() if name.endswith(tuple(places))]
    config = METHODS[method](modules)
    if isinstance(config, LoraConfig):
        config.r = config.lora_alpha = directions
    adapter = PeftAdapter(model, config)
    try:
        split = SplitModel(model, 0)
        for ids in windows.split(1):
            (split.nll(split.below(ids), ids) / (windows.shape[0] * (windows.shape[1] - 1))).backward()
        found = dict.fromkeys(modules, (0.0, 0))
        for name, parameter in adapter.modules.items():
            module = next(m for m in modules if f".{m}." in f".{name}")
            slope, size = found[module]
            slopes = 0.0 if parameter.grad is None else parameter.grad.abs().sum().item()
            ranks = directions if ".lora_A." in name or ".lora_B." in name else 1
            found[module] = slope + slopes / ranks, size + parameter.numel() // ranks
        return found
    finally:
        adapter.detach()


def steepest_along_gradient(gradients: dict[str, Tensor]) -> dict[str, tuple[float, int]]:
    """The same for LoRA with A along the gradient, from dL/dW of each module: all its slopes are those of B."""
    return {
        name: (DIRECTION_NORM * (gradient @ _direction(gradient)).abs().sum().item(), sum(gradient.shape))
        for name, gradient in gradients.items()
    }


def _direction(gradient: Tensor) -> Tensor:
    return torch.linalg.svd(gradient, full_matrices=False).Vh[0]


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


@torch.no_grad()
def start_along(gradients: dict[str, Tensor], adapter: PeftAdapter) -> None:
    """Turn A of every low-rank pair along the gradient dL/dW of its module."""
    for name, parameter in adapter.modules.items():
        module, is_a, _ = name.partition(".lora_A.")
        if is_a:
            parameter.copy_(DIRECTION_NORM * _direction(gradients[module]))


@torch.no_grad()
def scale_slopes(model: LlamaForCausalLM, gradients: dict[str, Tensor], adapter: PeftAdapter) -> dict[str, Tensor]:
    """Of all scales of IA³ at one, from dL/dW: that of row i has the slope sum_j W_ij dL/dW_ij, and so for columns."""
    slopes = {}
    for name, parameter in adapter.modules.items():
        module = name.partition(".ia3_l")[0]
        layer = model.get_submodule(module)
        product = gradients[module] * layer.get_base_layer().weight
        slopes[name] = product.sum(0 if layer.is_feedforward else 1).view_as(parameter)
    return slopes


def steepest_entries(slopes: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Masks of the entries with the largest absolute slopes of all."""
    sizes = torch.cat([slope.abs().flatten() for slope in slopes.values()])
    chosen = torch.zeros_like(sizes, dtype=torch.bool)
    chosen[sizes.topk(count).indices] = True
    parts = chosen.split([slope.numel() for slope in slopes.values()])
    return {name: part.view_as(slopes[name]) for name, part in zip(slopes, parts, strict=True)}


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
                modules = choose_modules(mine, budget)
                where = ("all" if place == PROJECTIONS else "+".join(place)) + (variant and f"-{variant}")
                _add(found, f"{method}/{label}/{where}", modules)
    for label in BUDGETS:
        for place in PLACES[-2:]:
            where = "all" if place == PROJECTIONS else "+".join(place)
            modules = [module for module in slopes["ia3"] if module.endswith(place)]
            _add(found, f"scales/{label}/{where}", modules)
    return found


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
    spread = train[torch.linspace(0, len(train) - 1, GRADIENT_WINDOWS).long()]
    slopes = {f"slopes/{method}": (method, PROJECTIONS, DIRECTIONS) for method in METHODS if method != "scales"}
    slopes |= {f"slopes/{method}-one": (method, PLACES[-2], 1) for method in ("lora", "dora")}
    slopes["slopes/lora-gradient"] = ()
    for key in record.missing(slopes):
        started = time.perf_counter()
        if slopes[key]:
            found = steepest(full.model, spread, *slopes[key])
        else:
            names = [name for name, _ in full.model.named_modules() if name.endswith(PROJECTIONS)]
            found = steepest_along_gradient(full.weight_gradients(names))
        record.add(key, {"of": found}, time.perf_counter() - started)
        print(f"{key}: {len(found)} modules", flush=True)
    if not record.has(*slopes):
        return record.result
    known = {key.removeprefix("slopes/"): record.result["runs"][key]["of"] for key in slopes}
    work = cells(known)

    def measure(key: str, bench: Bench, cell: str = "", training: TrainConfig = TRAINING) -> None:
        started = time.perf_counter()
        if cell:
            method, modules = work[cell]
            ready = prepare(full, cell, modules)
            run = bench.fit_peft(METHODS[method](modules), training, "selection", 0, prepare=ready)
            run |= {"rate": training.learning_rate, "modules": modules}
        else:
            run = bench.measure("selection", 0)
        record.add(key, run, time.perf_counter() - started)
        print(f"{key}: perplexity {run['perplexity']:.3f}", flush=True)

    def try_places(keys: Iterable[str]) -> None:
        for key in record.missing(keys):
            rate = TRAINING.learning_rate * PACE.get(work[key][0], 1)
            measure(key, few, key, replace(TRAINING, learning_rate=rate))

    for key in record.missing(["base", "base-rate"]):
        measure(key, few if key == "base" else full)
    first = list(work)
    try_places(first)
    if not record.has("base", "base-rate", *first):
        return record.result
    best = best_places({key: record.result["runs"][key] for key in first}).values()
    more = variants({cell: work[cell] for cell in best}, known)
    work |= more
    try_places(more)
    if not record.has(*more):
        return record.result
    while rest := next_rates(record.result["runs"]):
        for key in record.missing(rest):
            cell, rate = rest[key]
            measure(key, full, cell, replace(TRAINING, steps=STEPS, learning_rate=rate))
        if not record.has(*rest):
            return record.result
    return record.finish(headline(record.result["runs"]))


def settings(config: PeftConfig) -> dict[str, Any]:
    """What a method is set to, without what is the same for all and where it goes."""
    keys = ("r", "lora_alpha", "use_dora", "oft_block_size", "use_cayley_neumann", "d_initial")
    return {"peft_type": str(config.peft_type.value)} | {k: getattr(config, k) for k in keys if hasattr(config, k)}


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
