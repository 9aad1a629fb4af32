"""Rotations on both sides of projections: can our blocks have more for the same number of parameters?

:mod:`.budgets` has blocks of four on the inputs of three projections, and at 25,920 parameters LoRA lowers perplexity
further.  :mod:`.placement` never tried inputs of some projections together with outputs of others, nor pairs of
components in place of fours.  That is done here as it was done there: shares are compared on validation text, at the
learning rate of ours, the best of them at three rates; and it alone meets the test text, with five seeds.  Every block
is orthogonal and runs as a circuit, as before.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import cua
from cua import CUAConfig
from cua.cayley import n_parameters
from cua.experiments import baselines
from cua.experiments.bench import Bench, largest_k_norm
from cua.experiments.budgets import BUDGETS, PROJECTIONS
from cua.experiments.placement import BLOCKS
from cua.experiments.protocol import change_over_seeds_and_text, chosen_groups, percent_change, used
from cua.experiments.rate_selection import BUDGET as BUDGET_RATES
from cua.experiments.record import ADAPTERS, Record, load_complete, load_result, point
from cua.llm.models import identity
from cua.llm.train import TrainConfig

NAME = "both_sides"
QUESTION = "Do rotations of 6,000 and 26,000 parameters gain more on inputs and outputs together, or in pairs?"
OUTPUTS = ("up_proj", "gate_proj")
FIRST_RATE, STEPS = BUDGETS[0].training.learning_rate, BUDGET_RATES.steps
RATES = (FIRST_RATE / 2, FIRST_RATE, 2 * FIRST_RATE)
SEEDS, EVERY = baselines.SEEDS, baselines.EVERY


@dataclass(frozen=True)
class Share:
    """Projections whose inputs or outputs share the blocks equally."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    block_size: int = 4

    def adapters(self, bench: Bench, n_blocks: int) -> list[tuple[CUAConfig, dict[str, Tensor]]]:
        """Configuration and components, one for each side, with as many parameters as ``n_blocks`` blocks of four."""
        each = n_blocks * n_parameters(4) // n_parameters(self.block_size) // len(self.inputs + self.outputs)
        found = []
        for side, mine, every in (("input", self.inputs, PROJECTIONS), ("output", self.outputs, OUTPUTS)):
            if mine:
                config = CUAConfig(mine, side=side, block_size=self.block_size)
                blocks = tuple((projection, each) for projection in mine)
                found.append((config, chosen_groups(bench.gradients(every, side), config, blocks)))
        return found


SHARES = {
    "pairs": Share(PROJECTIONS, block_size=2),
    "up": Share(PROJECTIONS, ("up_proj",)),
    "up_gate": Share(PROJECTIONS, OUTPUTS),
    "down_o_up_gate": Share(("o_proj", "down_proj"), OUTPUTS),
    "v_o_up": Share(("v_proj", "o_proj"), ("up_proj",)),
}
SIZES = {"6k": BLOCKS[1], "25k": BLOCKS[2]}


def run() -> dict[str, Any]:
    """Every share at one rate, the best at three, and its five seeds on the test text.

    Raises:
        FileNotFoundError, ValueError: if what it is compared with is not recorded; naming the command.
    """
    choosing, full = Bench.prepare(test=False), Bench.prepare(test=True)
    compared = Compared.load(choosing, full)
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "shares": {name: asdict(share) for name, share in SHARES.items()},
                "blocks": SIZES,
                "rates": RATES,
                "steps": STEPS,
                "training": {k: v for k, v in used(BUDGETS[0].training).items() if k not in ("seed", "learning_rate")},
                "every": EVERY,
            },
            "seeds": SEEDS,
            "model": identity(full.model),
            "data": full.data,
        }
    )

    def add(keys: list[str], bench: Bench, split: str) -> bool:
        for key in record.missing(keys):
            started = time.perf_counter()
            share, n_blocks, training, folder = _work(record.result["runs"], key)
            run = fit(bench, SHARES[share].adapters(choosing, n_blocks), training, split, folder)
            record.add(key, run, time.perf_counter() - started)
            print(f"{key}: perplexity {run['perplexity']:.3f}", flush=True)
        return record.has(*keys)

    if not add([f"{size}/{name}/rate{FIRST_RATE}" for size in SIZES for name in SHARES], choosing, "selection"):
        return record.result
    best = {size: best_share(record.result["runs"], size) for size in SIZES}
    if not add([f"{size}/{name}/rate{rate}" for size, name in best.items() for rate in RATES], choosing, "selection"):
        return record.result
    test = Bench(full.model, full.tokens | {"test": full.tokens["test"][::EVERY]}, full.data)
    if not add([f"{size}/seed{seed}" for size in SIZES for seed in SEEDS], test, "test"):
        return record.result
    return record.finish(headline(record.result["runs"], compared))


def fit(
    bench: Bench,
    parts: list[tuple[CUAConfig, dict[str, Tensor]]],
    training: TrainConfig,
    split: str,
    folder: Path | None,
) -> dict[str, Any]:
    """Attach one adapter for each part, train them together, measure; save each by its side, and detach."""
    adapters: list[cua.Adapter] = []
    try:
        for config, groups in parts:
            adapters.append(cua.attach(bench.model, config, groups))
        measured = bench.train_and_measure(adapters, training, split, 0)
        if folder is not None:
            for adapter in adapters:
                cua.save(adapter, folder / adapter.config.side)
        count, norm = sum(adapter.n_parameters for adapter in adapters), max(map(largest_k_norm, adapters))
        return {"parameters": count, "largest_k_norm": norm} | measured
    finally:
        for adapter in adapters:
            adapter.detach()


def best_share(runs: dict[str, Any], size: str) -> str:
    """The share with the lowest perplexity of validation text at the first rate."""
    return min(SHARES, key=lambda name: runs[f"{size}/{name}/rate{FIRST_RATE}"]["perplexity"])


def best_rate(runs: dict[str, Any], size: str) -> float:
    """The rate with the lowest perplexity of validation text, of the best share."""
    name = best_share(runs, size)
    return min(RATES, key=lambda rate: runs[f"{size}/{name}/rate{rate}"]["perplexity"])


def _work(runs: dict[str, Any], key: str) -> tuple[str, int, TrainConfig, Path | None]:
    """Share, blocks of four, training and folder of a run."""
    size, *rest = key.split("/")
    training = BUDGETS[0].training
    if len(rest) == 2:
        rate = float(rest[1].removeprefix("rate"))
        return rest[0], SIZES[size], replace(training, steps=STEPS, learning_rate=rate), None
    seed = int(rest[0].removeprefix("seed"))
    training = replace(training, learning_rate=best_rate(runs, size), seed=seed)
    return best_share(runs, size), SIZES[size], training, ADAPTERS / NAME / key if seed == 0 else None


@dataclass(frozen=True)
class Compared:
    """Recorded runs on the same text: of validation our inputs alone; of the test LoRA and our inputs, by seed."""

    rates: dict[str, Any]
    baselines: dict[str, Any]
    inputs: dict[str, list[dict[str, Any]]]

    @classmethod
    def load(cls, choosing: Bench, full: Bench) -> "Compared":
        rates, others = load_complete(BUDGET_RATES.name), load_result(baselines.NAME)
        wanted = ["base", *(f"lora/{size}/seed{seed}" for size in SIZES for seed in SEEDS)]
        if missing := [key for key in wanted if key not in others["runs"]]:
            raise ValueError(
                f"{baselines.NAME} has no {', '.join(missing)}; go on with: python -m cua.experiments {baselines.NAME}"
            )
        studies = {size: load_complete(f"budget_{size}") for size in SIZES}
        baselines.check_same(rates, choosing)
        for result in (others, *studies.values()):
            baselines.check_same(result, full)
        exact = {size: [study["runs"][f"exact-seed{seed}"] for seed in SEEDS] for size, study in studies.items()}
        inputs = {size: list(map(baselines.same_windows, runs)) for size, runs in exact.items()}
        return cls(rates["runs"], others["runs"], inputs)


def headline(runs: dict[str, Any], compared: Compared) -> dict[str, dict[str, Any]]:
    """Change of perplexity of every share on validation text; of the best of each size on the test, and against."""
    numbers = {}
    for size in SIZES:
        base, inputs = (compared.rates[key] for key in ("base", f"budget_{size}-rate{FIRST_RATE}"))
        numbers[f"{size}_inputs_selection"] = point(percent_change(inputs, base), "%")
        for name in SHARES:
            run = runs[f"{size}/{name}/rate{FIRST_RATE}"]
            numbers[f"{size}_{name}_selection"] = point(percent_change(run, base), "%")
        numbers[f"{size}_rate"] = point(best_rate(runs, size), "1")
        tested = [runs[f"{size}/seed{seed}"] for seed in SEEDS]
        numbers[f"{size}_parameters"] = point(tested[0]["parameters"], "parameters")
        low_rank = [compared.baselines[f"lora/{size}/seed{seed}"] for seed in SEEDS]
        against = {"change": [compared.baselines["base"]] * len(SEEDS)}
        against |= {"against_inputs": compared.inputs[size], "against_lora": low_rank}
        for name, others in against.items():
            pairs = list(zip(tested, others, strict=True))
            numbers[f"{size}_{name}"] = change_over_seeds_and_text([pairs])
    return numbers
