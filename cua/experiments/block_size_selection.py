"""Learning rates of the block sizes in chapter 5, chosen on held-out validation text."""

import time
from dataclasses import replace
from typing import Any

from cua.experiments.bench import Bench
from cua.experiments.protocol import percent_change, used
from cua.experiments.record import Record, point
from cua.experiments.v_proj import BLOCK_SIZES, BOUNDED
from cua.llm.models import identity

NAME = "block_size_selection"
QUESTION = "Which learning rate lowers held-out validation perplexity most, for each block size on one v_proj?"
OTHER_BUTTERFLIES = {"v_proj_butterfly3": (1, 4, 16), "v_proj_butterfly5_repeated": (1, 4, 1, 4, 1)}  # to compare with
STUDIES = {study.name: study for study in BLOCK_SIZES if study is not BOUNDED}  # that one keeps the rate of v_proj_one
STUDIES |= {
    name: replace(
        STUDIES["v_proj_butterfly"], name=name, adapter=replace(STUDIES["v_proj_butterfly"].adapter, strides=strides)
    )
    for name, strides in OTHER_BUTTERFLIES.items()
}
RATES, STEPS = (0.01, 0.02, 0.04, 0.08), 120


def run() -> dict[str, Any]:
    """Each placement with each rate, one seed, half the steps of the final runs.

    The changes of perplexity are those of the best rate on the text that chose it, so a little too good.
    """
    bench = Bench.prepare(test=False)
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "rates": RATES,
                "steps": STEPS,
                "adapters": {name: used(study.adapter) for name, study in STUDIES.items()},
            },
            "seeds": [0],
            "model": identity(bench.model),
            "data": bench.data,
        }
    )
    trained = {f"{study.name}-rate{rate}": (study, rate) for study in STUDIES.values() for rate in RATES}
    for key in record.missing(["base", *trained]):
        started = time.perf_counter()
        if key == "base":
            run = bench.measure("selection", *BOUNDED.adapter.layers)
        else:
            study, rate = trained[key]
            run = bench.fit(study.adapter, replace(study.training, steps=STEPS, learning_rate=rate), None, "selection")
        record.add(key, run, time.perf_counter() - started)
        print(f"{key}: perplexity {run['perplexity']:.3f}", flush=True)
    if not record.has("base", *trained):
        return record.result
    runs = record.result["runs"]
    headline = {}
    for name in STUDIES:
        best = min(RATES, key=lambda rate: runs[f"{name}-rate{rate}"]["perplexity"])
        headline[f"{name}_rate"] = point(best, "1")
        headline[f"{name}_selection_change"] = point(percent_change(runs[f"{name}-rate{best}"], runs["base"]), "%")
    return record.finish(headline)
