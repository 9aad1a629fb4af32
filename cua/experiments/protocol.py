"""The WikiText-2 protocol that every recorded perplexity follows.

Train and choose on two parts of the validation split (:func:`cua.experiments.bench.wikitext_splits`), report once on
the whole test split.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from cua import CUAConfig
from cua.config import layer_number
from cua.experiments.bench import Bench, within
from cua.experiments.record import ADAPTERS, Record, point
from cua.llm.models import identity
from cua.llm.placement import GRADIENT_WINDOWS, choose_groups
from cua.llm.train import TrainConfig

GROUPS = 30  # of neighbouring windows; of WikiText-2's test split ten windows each, two articles


@dataclass(frozen=True)
class WikitextStudy:
    """Base model against adapters of one placement: each readout, each seed, on the whole test split.

    Attributes:
        name: of the result file and the adapters' folder.
        question: what it answers.
        adapter: placement; its readout field is replaced by each of ``readouts``.
        training: schedule; its seed field is replaced by each of ``seeds``.
        blocks: projections, and how many blocks of components chosen by their gradient each of them gets; empty: all
            components in order.
    """

    name: str
    question: str
    adapter: CUAConfig
    training: TrainConfig
    readouts: tuple[str, ...] = ("exact", "sign-constrained")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    blocks: tuple[tuple[str, int], ...] = ()

    @property
    def configuration(self) -> dict[str, Any]:
        """What is recorded of placement and schedule; options that are not used are left out."""
        chosen = {"blocks": dict(self.blocks), "gradient_windows": GRADIENT_WINDOWS} if self.blocks else {}
        return {
            "adapter": {k: v for k, v in used(self.adapter).items() if k != "readout"},
            "training": {k: v for k, v in used(self.training).items() if k != "seed"},
            "readouts": self.readouts,
        } | chosen

    def run(self) -> dict[str, Any]:
        """Record every run that is not recorded yet, and the headline once all are."""
        bench = Bench.prepare(test=True)
        record = Record(
            {
                "name": self.name,
                "question": self.question,
                "config": self.configuration,
                "seeds": self.seeds,
                "model": identity(bench.model),
                "data": bench.data,
            }
        )
        groups = self.groups(bench)
        layer = min(map(layer_number, groups)) if groups else min(self.adapter.layers or (0,))
        trained = {f"{readout}-seed{seed}": (readout, seed) for seed in self.seeds for readout in self.readouts}

        def make(key: str) -> dict[str, Any]:
            if key == "base":
                return bench.measure_base("test", layer)
            readout, seed = trained[key]
            config, training = replace(self.adapter, readout=readout), replace(self.training, seed=seed)
            return bench.fit(config, training, ADAPTERS / self.name / key, "test", groups)

        if not record.fill(["base", *trained], make):
            return record.result
        return record.finish(self.headline(record.result["runs"]))

    def groups(self, bench: Bench) -> dict[str, Tensor] | None:
        """The components of the chosen blocks; ``None`` where all are in order."""
        if not self.blocks:
            return None
        gradients = bench.gradients(tuple(projection for projection, _ in self.blocks), self.adapter.side)
        return chosen_groups(gradients, self.adapter, self.blocks)

    def headline(self, runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Means with 95 % intervals: over training seeds, and (``..._over_text``) over the test text."""
        base = runs["base"]
        numbers = {
            "base_perplexity": point(base["perplexity"], "perplexity"),
            "parameters": point(runs[f"{self.readouts[0]}-seed{self.seeds[0]}"]["parameters"], "parameters"),
        }
        for readout in self.readouts:
            mine = [runs[f"{readout}-seed{seed}"] for seed in self.seeds]
            label = readout.replace("-", "_")
            numbers[f"{label}_perplexity"] = mean_interval([run["perplexity"] for run in mine], "perplexity")
            numbers[f"{label}_change"] = mean_interval([percent_change(run, base) for run in mine], "%")
            numbers[f"{label}_change_over_text"] = change_over_text([(run, base) for run in mine])
        return numbers


def chosen_groups(
    gradients: dict[str, Tensor], config: CUAConfig, blocks: tuple[tuple[str, int], ...]
) -> dict[str, Tensor]:
    """Components of the blocks of each projection, chosen among the config's layers by their gradient."""
    gradients = within(gradients, config.layers)
    groups: dict[str, Tensor] = {}
    for projection, n_blocks in blocks:
        mine = {name: k for name, k in gradients.items() if name.endswith(projection)}
        groups |= choose_groups(mine, config.block_size, n_blocks)
    return groups


def used(options: CUAConfig | TrainConfig) -> dict[str, Any]:
    """The options without those that came later and are not used, so that records from before them still agree."""
    later = {"max_k_norm": None, "distillation": 0.0, "temperature": 1.0, "gain": False}
    return {name: value for name, value in asdict(options).items() if name not in later or value != later[name]}


def schedule(training: TrainConfig) -> dict[str, Any]:
    """The options of :func:`used` that all runs of an experiment share, which is all but the seed and the rate."""
    return {name: value for name, value in used(training).items() if name not in ("seed", "learning_rate")}


def percent_change(run: dict[str, Any], base: dict[str, Any]) -> float:
    """Change of perplexity against the base model, in per cent; negative is better."""
    return 100 * (run["perplexity"] / base["perplexity"] - 1)


def change_over_text(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Change of perplexity from the second run of each pair to the first, in per cent; 95 % interval over the text.

    Losses are averaged over the pairs (seeds), so that the change is their geometric mean; how they differ is not in
    the interval.  Neighbouring windows share an article, and their changes are alike: what the interval is over are the
    means of :data:`GROUPS` runs of neighbours, or single windows where there are fewer.
    """
    changes = _by_window(pairs)
    return _percent(changes.mean(), _half_width(_groups(changes)))


def change_over_seeds_and_text(texts: list[list[tuple[dict[str, Any], dict[str, Any]]]]) -> dict[str, Any]:
    """The same in the geometric mean over several texts, for other seeds and other text at once.

    Half-widths over seeds and over each text (in nats) add in squares; with a single seed only those over text.

    Args:
        texts: of each text a pair of runs for each seed, in the same order.
    """
    seeds = np.mean([[_by_window([pair]).mean() for pair in pairs] for pairs in texts], axis=0)
    halves = [_half_width(_groups(_by_window(pairs))) / len(texts) for pairs in texts]
    if len(seeds) > 1:
        halves.append(_half_width(seeds))
    return _percent(seeds.mean(), float(np.linalg.norm(halves)))


def _by_window(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> np.ndarray:
    """Change of the loss in nats a token, window by window, in the mean over the pairs."""
    windows, tokens = len(pairs[0][0]["nll"]), pairs[0][0]["tokens"]
    return np.mean([np.array(run["nll"]) - np.array(base["nll"]) for run, base in pairs], axis=0) * windows / tokens


def _groups(changes: np.ndarray) -> np.ndarray:
    return np.array([group.mean() for group in np.array_split(changes, min(GROUPS, len(changes)))])


def _half_width(values: np.ndarray) -> float:
    """Of the 95 % Student-t interval of their mean."""
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def _percent(nats: float, half: float) -> dict[str, Any]:
    """A change of the mean loss as a change of perplexity."""
    low, value, high = (100 * float(np.expm1(n)) for n in (nats - half, nats, nats + half))
    return {"value": value, "low": low, "high": high, "unit": "%"}


def percent_of_nats(changes: list[float] | np.ndarray) -> dict[str, Any]:
    """Changes of the mean loss as a change of perplexity in per cent; the 95 % interval is over them."""
    nats = np.asarray(changes)
    if len(nats) == 1:
        return point(100 * float(np.expm1(nats[0])), "%")
    return _percent(nats.mean(), _half_width(nats))


def mean_interval(values: list[float] | np.ndarray, unit: str) -> dict[str, Any]:
    """Mean with a 95 % Student-t interval; no interval for a single value."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return point(mean, unit)
    half = _half_width(np.asarray(values))
    return {"value": mean, "low": mean - half, "high": mean + half, "unit": unit}
