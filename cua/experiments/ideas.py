"""Better use of a parameter: ideas against plain blocks, each with 840 to 992 parameters on the outputs of v_proj.

Each at its own learning rate, chosen with one seed on some windows of the held-out validation text; measured on others,
three seeds.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cua import CUAConfig
from cua.cayley import cayley, inverse_cayley, skew, unskew
from cua.experiments.bench import Bench
from cua.experiments.protocol import mean_interval, percent_change, schedule, used
from cua.experiments.record import Record, point
from cua.llm.models import identity
from cua.llm.placement import choose_groups
from cua.llm.train import TrainConfig

NAME = "ideas"
QUESTION = "Which use of 864 parameters on the outputs of v_proj lowers held-out validation perplexity most?"
SEEDS, RATES = (0, 1, 2), (0.015, 0.03, 0.06)
EVERY = 3  # of the selection split every third window measures, and the one after it chooses rates
TRAINING = TrainConfig(steps=60, learning_rate=RATES[1], warmup=10)
PLAIN = CUAConfig(side="output")


class CayleyAdam(torch.optim.Adam):
    """Adam on the group of rotations: each step is a small rotation from where the block stands.

    With K = K(theta), A = I + K/2 and Q <- cayley(delta) Q, a change of K by A delta A^T is the rotation delta, so the
    gradient with respect to delta is A^T (dL/dK) A.  Adam's averages are kept in these local coordinates.
    """

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        before = []
        for theta in self.param_groups[0]["params"]:
            b = round((1 + (1 + 8 * theta.shape[1]) ** 0.5) / 2)
            k = skew(theta, b)
            a = torch.eye(b) + k / 2
            theta.grad = unskew(a.mT @ skew(theta.grad, b) @ a)
            before.append((theta, b, cayley(k)))
            theta.zero_()
        super().step()
        for theta, b, q in before:
            theta.copy_(unskew(inverse_cayley(cayley(skew(theta, b)) @ q)))


@dataclass(frozen=True)
class Idea:
    """One use of the parameters.

    Attributes:
        says: what it is.
        groups: how components come into blocks: "chosen" by their gradient; "in order", the best blocks of neighbours
            anywhere; "whole layers", all blocks of the best layers; or "random".
        n_blocks: blocks, of all layers together.
        options: of the adapter.
        optimizer: that trains it.
    """

    says: str
    groups: str
    n_blocks: int
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam

    @property
    def config(self) -> CUAConfig:
        return replace(PLAIN, **self.options)


IDEAS = {
    "plain": Idea("all blocks of the three best layers", "whole layers", 144),
    "random": Idea("components drawn at random, from all layers", "random", 144),
    "in_order": Idea("the best blocks of neighbours, from all layers", "in order", 144),
    "chosen": Idea("blocks of components chosen by their gradient", "chosen", 144),
    "chosen_2x2": Idea("chosen pairs", "chosen", 864, {"block_size": 2}),
    "chosen_8x8": Idea("chosen groups of eight", "chosen", 31, {"block_size": 8}),
    "chosen_16x16": Idea("chosen groups of sixteen", "chosen", 7, {"block_size": 16}),
    "chosen_32x32": Idea("chosen groups of thirty-two", "chosen", 2, {"block_size": 32}),
    "chosen_gain": Idea("chosen blocks with a gain each", "chosen", 123, {"gain": True}),
    "chosen_manifold": Idea("chosen blocks, trained on the manifold", "chosen", 144, optimizer=CayleyAdam),
}


def groups_of(idea: Idea, gradients: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The components of each block, by layer."""
    b, n = idea.config.block_size, idea.n_blocks
    if idea.groups == "chosen":
        return choose_groups(gradients, b, n)
    generator = torch.Generator().manual_seed(seed)
    draw = idea.groups == "random"
    # For every block of every layer: its components, and what it is worth.
    blocks, worth = {}, {}
    for name, k in gradients.items():
        components = torch.randperm(len(k), generator=generator) if draw else torch.arange(len(k))
        blocks[name] = components.view(-1, b)
        inside = torch.stack([k[group][:, group].abs().sum() for group in blocks[name]])
        worth[name] = torch.rand(len(inside), generator=generator) if draw else inside
        if idea.groups == "whole layers":
            worth[name] = inside.sum().expand(len(inside))
    least = torch.cat(list(worth.values())).sort(descending=True).values[n - 1]
    kept = {name: blocks[name][worth[name] >= least] for name in blocks}
    return {name: group for name, group in kept.items() if len(group)}


def run() -> dict[str, Any]:
    """Every idea at every rate with the first seed, then at its best rate with the others."""
    full = Bench.prepare(test=False)
    selection = full.tokens["selection"]
    tokens = full.tokens | {"selection": selection[::EVERY], "rates": selection[1::EVERY]}
    bench = Bench(full.model, tokens, full.data)
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "adapter": used(PLAIN),
                "training": schedule(TRAINING),
                "rates": RATES,
                "every": EVERY,
                "ideas": {
                    name: {"says": idea.says, "groups": idea.groups, "n_blocks": idea.n_blocks, **idea.options}
                    for name, idea in IDEAS.items()
                },
            },
            "seeds": SEEDS,
            "model": identity(bench.model),
            "data": bench.data,
        }
    )

    def fit(idea: Idea, rate: float, seed: int, splits: tuple[str, ...]) -> dict[str, Any]:
        groups = groups_of(idea, bench.gradients(PLAIN.target_modules, PLAIN.side), seed)
        training = replace(TRAINING, learning_rate=rate, seed=seed)
        run = bench.fit(idea.config, training, None, splits, groups, 0, optimizer=idea.optimizer)
        return run | {"layers": len(groups), "rate": rate}

    first = {f"{name}-rate{rate}-seed{SEEDS[0]}": (name, rate) for name in IDEAS for rate in RATES}

    def make(key: str) -> dict[str, Any]:
        if key == "base":
            return bench.measure("selection", 0)
        name, rate = first[key]
        return fit(IDEAS[name], rate, SEEDS[0], ("selection", "rates"))

    if not record.fill(["base", *first], make):
        return record.result
    best = {name: best_rate(record.result["runs"], name) for name in IDEAS}
    rest = {f"{name}-rate{best[name]}-seed{seed}": (name, seed) for seed in SEEDS[1:] for name in IDEAS}

    def again(key: str) -> dict[str, Any]:
        name, seed = rest[key]
        return fit(IDEAS[name], best[name], seed, ("selection",))

    if not record.fill(rest, again):
        return record.result
    return record.finish(headline(record.result["runs"]))


def best_rate(runs: dict[str, Any], name: str) -> float:
    """The rate with the lowest perplexity on the windows that choose."""
    return min(RATES, key=lambda rate: runs[f"{name}-rate{rate}-seed{SEEDS[0]}"]["rates"]["perplexity"])


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Change of perplexity against the base model, and against the plain blocks of the same seed; over seeds."""
    best = {name: [runs[f"{name}-rate{best_rate(runs, name)}-seed{seed}"] for seed in SEEDS] for name in IDEAS}
    numbers = {}
    for name, mine in best.items():
        numbers[f"{name}_parameters"] = point(mine[0]["parameters"], "parameters")
        numbers[f"{name}_rate"] = point(best_rate(runs, name), "1")
        numbers[f"{name}_change"] = mean_interval([percent_change(run, runs["base"]) for run in mine], "%")
        if name != "plain":
            pairs = zip(mine, best["plain"], strict=True)
            numbers[f"{name}_against_plain"] = mean_interval([percent_change(*pair) for pair in pairs], "%")
    return numbers
