"""Learning rates of the block sizes in chapter 5, chosen on held-out validation text."""

import time
from dataclasses import asdict, replace
from typing import Any

from cua.experiments.protocol import Bench, percent_change
from cua.experiments.record import Record
from cua.experiments.v_proj import BLOCK_SIZES
from cua.llm.models import identity

NAME = "block_size_selection"
QUESTION = "Which learning rate lowers held-out validation perplexity most, for each block size on one v_proj?"
RATES, STEPS = (0.01, 0.02, 0.04, 0.08), 120


def run() -> dict[str, Any]:
    """Each placement of ``BLOCK_SIZES`` with each rate, one seed, half the steps of the final runs."""
    bench = Bench.prepare(test=False)
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {"rates": RATES, "steps": STEPS, "adapters": {s.name: asdict(s.adapter) for s in BLOCK_SIZES}},
            "seeds": [0],
            "model": identity(bench.model),
            "data": bench.data,
        }
    )
    runs = record.result["runs"]
    if not record.has("base"):
        started = time.perf_counter()
        record.add("base", bench.measure("selection", 20), time.perf_counter() - started)
    headline = {}
    for study in BLOCK_SIZES:
        for rate in RATES:
            key = f"{study.name}-rate{rate}"
            if not record.has(key):
                training = replace(study.training, steps=STEPS, learning_rate=rate)
                started = time.perf_counter()
                record.add(key, bench.fit(study.adapter, training, None, "selection"), time.perf_counter() - started)
            runs = record.result["runs"]
            print(f"{key}: {percent_change(runs[key], runs['base']):+.2f} %", flush=True)
        best = min(RATES, key=lambda rate: runs[f"{study.name}-rate{rate}"]["perplexity"])
        headline[f"{study.name}_rate"] = {"value": best, "low": None, "high": None, "unit": "1"}
    return record.finish(headline)
