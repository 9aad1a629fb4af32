"""Learning rates of final runs, chosen on held-out validation text."""

from dataclasses import dataclass, replace
from typing import Any

from cua.experiments.bench import Bench
from cua.experiments.budgets import BUDGETS
from cua.experiments.protocol import WikitextStudy, percent_change, used
from cua.experiments.record import Record, point
from cua.experiments.v_proj import BLOCK_DIMENSIONS, BLOCK_SIZES, BOUNDED
from cua.llm.models import identity


@dataclass(frozen=True)
class RateSelection:
    """Each study's placement with each rate, read exactly, one seed, half the steps of the final runs.

    The changes of perplexity are those of the best rate on the text that chose it, so a little too good.

    Attributes:
        name: of the result file.
        question: what it answers.
        studies: by the name that they have in the result.
        rates: learning rates that are tried.
        steps: of training.
    """

    name: str
    question: str
    studies: dict[str, WikitextStudy]
    rates: tuple[float, ...]
    steps: int = 120

    @property
    def configuration(self) -> dict[str, Any]:
        chosen = {name: dict(study.blocks) for name, study in self.studies.items() if study.blocks}
        return {
            "rates": self.rates,
            "steps": self.steps,
            "adapters": {name: used(study.adapter) for name, study in self.studies.items()},
        } | ({"blocks": chosen} if chosen else {})

    def run(self) -> dict[str, Any]:
        """Record every run that is not recorded yet, and the best rates once all are."""
        bench = Bench.prepare(test=False)
        record = Record(
            {
                "name": self.name,
                "question": self.question,
                "config": self.configuration,
                "seeds": [0],
                "model": identity(bench.model),
                "data": bench.data,
            }
        )
        trained = {f"{name}-rate{rate}": (study, rate) for name, study in self.studies.items() for rate in self.rates}
        first_layer = min(min(study.adapter.layers or (0,)) for study in self.studies.values())

        def make(key: str) -> dict[str, Any]:
            if key == "base":
                return bench.measure("selection", first_layer)
            study, rate = trained[key]
            training = replace(study.training, steps=self.steps, learning_rate=rate)
            return bench.fit(study.adapter, training, None, "selection", study.groups(bench))

        if not record.fill(["base", *trained], make):
            return record.result
        runs = record.result["runs"]
        headline = {}
        for name in self.studies:
            best = min(self.rates, key=lambda rate, name=name: runs[f"{name}-rate{rate}"]["perplexity"])
            headline[f"{name}_rate"] = point(best, "1")
            headline[f"{name}_selection_change"] = point(percent_change(runs[f"{name}-rate{best}"], runs["base"]), "%")
        return record.finish(headline)


def _by_name(*studies: WikitextStudy) -> dict[str, WikitextStudy]:
    return {study.name: study for study in studies}


_CHAPTER_5 = _by_name(
    *(study for study in BLOCK_SIZES if study is not BOUNDED)
)  # that one keeps the rate of v_proj_one
_BUTTERFLY = _CHAPTER_5["v_proj_butterfly"]
_TO_COMPARE = {"v_proj_butterfly3": (1, 4, 16), "v_proj_butterfly5_repeated": (1, 4, 1, 4, 1)}

BLOCK_SIZE = RateSelection(
    name="block_size_selection",
    question="Which learning rate lowers held-out validation perplexity most, for each block size on one v_proj?",
    studies=_CHAPTER_5
    | {
        name: replace(_BUTTERFLY, name=name, adapter=replace(_BUTTERFLY.adapter, strides=strides))
        for name, strides in _TO_COMPARE.items()
    },
    rates=(0.01, 0.02, 0.04, 0.08),
)

BLOCK_DIMENSION = RateSelection(
    name="block_dimension_selection",
    question="Which learning rate lowers held-out validation perplexity most, for the largest blocks on one v_proj?",
    studies=_by_name(*(study for study in BLOCK_DIMENSIONS if study.adapter.block_size > 16)),
    rates=(0.005, 0.01, 0.02, 0.04),
)

BUDGET = RateSelection(
    name="budget_rates",
    question="Which learning rate lowers held-out validation perplexity most, for the best placement of each size?",
    studies=_by_name(*BUDGETS),
    rates=(0.005, 0.01, 0.02, 0.04),
)

SELECTIONS = (BLOCK_SIZE, BLOCK_DIMENSION, BUDGET)
