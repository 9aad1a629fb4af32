"""Rotations on both sides of projections: can our blocks have more for the same number of parameters?

:mod:`.budgets` has blocks of four on the inputs of three projections, and at 25,920 parameters LoRA lowers perplexity
further.  :mod:`cua.experiments.placement` never tried inputs of some projections together with outputs of others, nor
pairs of components in place of fours.  That is done here as it was done there: shares are compared on validation text,
at the learning rate of ours, the best of them at three rates; and it alone meets the test text, with five seeds.  Every
block is orthogonal and runs as a circuit, as before.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cua import CUAConfig
from cua.cayley import n_parameters
from cua.experiments import baselines
from cua.experiments.bench import Bench
from cua.experiments.budgets import BUDGETS, TARGETS
from cua.experiments.placement import BLOCKS
from cua.experiments.protocol import change_over_seeds_and_text, chosen_groups, percent_change, schedule
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

    def adapters(self, bench: Bench, n_blocks: int) -> dict[str, tuple[CUAConfig, dict[str, Tensor]]]:
        """Configuration and components by side, with as many parameters as ``n_blocks`` blocks of four."""
        each = n_blocks * n_parameters(4) // n_parameters(self.block_size) // len(self.inputs + self.outputs)
        found = {}
        for side, mine, every in (("input", self.inputs, TARGETS), ("output", self.outputs, OUTPUTS)):
            if mine:
                config = CUAConfig(mine, side=side, block_size=self.block_size)
                blocks = tuple((projection, each) for projection in mine)
                found[side] = config, chosen_groups(bench.gradients(every, side), config, blocks)
        return found


SHARES = {
    "pairs": Share(TARGETS, block_size=2),
    "up": Share(TARGETS, ("up_proj",)),
    "up_gate": Share(TARGETS, OUTPUTS),
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
    rates, others, ours = _compared(choosing, full)
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "shares": {name: asdict(share) for name, share in SHARES.items()},
                "blocks": SIZES,
                "rates": RATES,
                "steps": STEPS,
                "training": schedule(BUDGETS[0].training),
                "every": EVERY,
            },
            "seeds": SEEDS,
            "model": identity(full.model),
            "data": full.data,
        }
    )

    def add(keys: list[str], bench: Bench, split: str) -> bool:
        def make(key: str) -> dict[str, Any]:
            share, n_blocks, training, folder = _work(record.result["runs"], key)
            return bench.fit_together(SHARES[share].adapters(choosing, n_blocks), training, folder, split, 0)

        return record.fill(keys, make)

    if not add([f"{size}/{name}/rate{FIRST_RATE}" for size in SIZES for name in SHARES], choosing, "selection"):
        return record.result
    best = {size: best_share(record.result["runs"], size) for size in SIZES}
    if not add([f"{size}/{name}/rate{rate}" for size, name in best.items() for rate in RATES], choosing, "selection"):
        return record.result
    tests = [f"{size}/seed{seed}" for size in SIZES for seed in SEEDS]
    if not add(tests, baselines.measured_part(full), "test"):
        return record.result
    return record.finish(headline(record.result["runs"], rates, others, ours))


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


def _compared(choosing: Bench, full: Bench) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]:
    """Recorded runs for :func:`headline`, of the same model and text."""
    rates, others = load_complete(BUDGET_RATES.name), load_result(baselines.NAME)
    studies = {size: load_complete(f"budget_{size}") for size in SIZES}
    wanted = ["base", *(f"lora/{size}/seed{seed}" for size in SIZES for seed in SEEDS)]
    if missing := [key for key in wanted if key not in others["runs"]]:
        raise ValueError(
            f"{baselines.NAME} has no {', '.join(missing)}; go on with: python -m cua.experiments {baselines.NAME}"
        )
    baselines.check_same(rates, choosing)
    for result in (others, *studies.values()):
        baselines.check_same(result, full)
    return rates["runs"], others["runs"], {size: study["runs"] for size, study in studies.items()}


def headline(
    runs: dict[str, Any], rates: dict[str, Any], others: dict[str, Any], ours: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Change of perplexity of every share on validation text; of the best of each size on the test, and against.

    Args:
        runs: of this experiment.
        rates: of our inputs alone on validation text.
        others: of :mod:`.baselines`.
        ours: of our inputs alone on the whole test split, by size.
    """
    numbers = {}
    for size in SIZES:
        base, inputs = (rates[key] for key in ("base", f"budget_{size}-rate{FIRST_RATE}"))
        numbers[f"{size}_inputs_selection"] = point(percent_change(inputs, base), "%")
        for name in SHARES:
            run = runs[f"{size}/{name}/rate{FIRST_RATE}"]
            numbers[f"{size}_{name}_selection"] = point(percent_change(run, base), "%")
        numbers[f"{size}_rate"] = point(best_rate(runs, size), "1")
        numbers[f"{size}_parameters"] = point(runs[f"{size}/seed{SEEDS[0]}"]["parameters"], "parameters")
        references = {
            "change": [others["base"] for _ in SEEDS],
            "against_inputs": [baselines.same_windows(ours[size][f"exact-seed{seed}"]) for seed in SEEDS],
            "against_lora": [others[f"lora/{size}/seed{seed}"] for seed in SEEDS],
        }
        tested = [runs[f"{size}/seed{seed}"] for seed in SEEDS]
        for name, reference in references.items():
            pairs = list(zip(tested, reference, strict=True))
            numbers[f"{size}_{name}"] = change_over_seeds_and_text([pairs])
    return numbers
