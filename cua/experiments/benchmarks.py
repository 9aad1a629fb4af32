"""Benchmarks, question by question: the base model, our adapters and low-rank ones, one result each.

A study needs the base model's result before it can be finished: questions are compared one by one.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import LlamaForCausalLM

import cua
from cua.experiments.paired import corrected_and_broken, mean_over_questions
from cua.experiments.record import ADAPTERS, Record, load_result, point
from cua.llm.baselines import PeftAdapter
from cua.llm.benchmarks import BENCHMARKS, MAX_LENGTH, available, benchmark, rows_of
from cua.llm.models import identity, load_model

EVERY = {
    "arc_easy": 1,
    "hellaswag": 8,
    "boolq": 3,
    "lambada": 3,
    "mmlu": 6,
    "triviaqa": 4,
    "wikitext": 3,
    "analogies": 1,
}
BASE = "benchmarks_base"


@dataclass(frozen=True)
class BenchmarkStudy:
    """One model on every benchmark whose rows can be had.

    Attributes:
        name: of the result file.
        question: what it answers.
        adapter: its folder ``EXPERIMENT/NAME``; none for the base model.
        load: puts it on a model; what comes back has ``detach()``.
    """

    name: str
    question: str
    adapter: str | None = None
    load: Callable[[LlamaForCausalLM, Any], Any] = cua.load

    def run(self) -> dict[str, Any]:
        """Every benchmark.

        Raises:
            FileNotFoundError: if the adapter is missing, naming the experiment that trains it.
        """
        folder = None if self.adapter is None else ADAPTERS / self.adapter
        if folder is not None and not folder.is_dir():
            experiment = self.adapter.partition("/")[0]
            raise FileNotFoundError(f"{self.adapter} is missing; train it with: python -m cua.experiments {experiment}")
        model, tokenizer = load_model()
        here = {name: source for name, source in available().items() if not source.startswith("–")}
        record = Record(
            {
                "name": self.name,
                "question": self.question,
                "config": {
                    "adapter": self.adapter,
                    "adapter_sha256": None if folder is None else _digest(folder),
                    "every": {name: EVERY[name] for name in here},
                    "max_length": MAX_LENGTH,
                    "left_out": [name for name in BENCHMARKS if name not in here],
                },
                "seeds": [0],
                "model": identity(model),
                "data": {name: _provenance(name, source) for name, source in here.items()},
            }
        )
        adapter = None if folder is None else self.load(model, folder)
        for name in record.missing(here):
            started = time.perf_counter()
            scores = benchmark(model, tokenizer, name, EVERY[name])
            record.add(
                name, {metric: _packed(values) for metric, values in scores.items()}, time.perf_counter() - started
            )
            print(f"{self.name}, {name}: {time.perf_counter() - started:.0f} s", flush=True)
        if adapter is not None:
            adapter.detach()
        if not record.has(*here):
            return record.result
        base = None if self.name == BASE else load_result(BASE)["runs"]
        return record.finish(headline(record.result["runs"], base))


def headline(runs: dict[str, Any], base: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Accuracy on each benchmark, over questions; against the base model also the difference, and both directions."""
    numbers = {}
    for name, run in runs.items():
        if "words" in run:
            perplexity = float(np.exp(-sum(run["loglikelihood"]) / sum(run["words"])))
            numbers[f"{name}_word_perplexity"] = point(perplexity, "perplexity")
            continue
        for metric, packed in run.items():
            answers, label = unpacked(packed), f"{name}_{metric}"
            numbers[label] = mean_over_questions(answers)
            if base is not None:
                before = unpacked(base[name][metric])
                corrected, broken, p = corrected_and_broken(before, answers)
                numbers[f"{label}_difference"] = mean_over_questions(answers - before)
                numbers[f"{label}_corrected"] = point(corrected, "questions")
                numbers[f"{label}_broken"] = point(broken, "questions")
                numbers[f"{label}_p"] = point(p, "1")
    return numbers


def _packed(values: list[float]) -> str | list[float]:
    """Right and wrong answers as one string of digits."""
    return "".join(str(int(v)) for v in values) if set(values) <= {0.0, 1.0} else [round(v, 4) for v in values]


def unpacked(answers: str) -> np.ndarray:
    """1 for each right answer, 0 for each wrong one."""
    return np.array([int(answer) for answer in answers])


def _provenance(name: str, source: str) -> dict[str, Any]:
    rows, _ = rows_of(name, EVERY[name])
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return {"source": source, "questions": len(rows), "sha256": digest.hexdigest()}


def _digest(folder: Any) -> str:
    (weights,) = folder.glob("*.safetensors")
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def _study(
    label: str, what: str, adapter: str, load: Callable[[LlamaForCausalLM, Any], Any] = cua.load
) -> BenchmarkStudy:
    return BenchmarkStudy(
        f"benchmarks_{label}", f"Which questions do {what} correct, and which do they break?", adapter, load
    )


STUDIES = [
    BenchmarkStudy(BASE, "How many questions of each benchmark does the model without an adapter answer?"),
    *(_study(f"cua_{b}", f"our blocks ({b} parameters)", f"budget_{b}/exact-seed0") for b in ("1k", "6k", "25k")),
    _study("cua_6k_copied_signs", "our blocks with copied signs", "budget_6k/sign-constrained-seed0"),
    *(
        _study(f"lora_{b}", f"low-rank matrices ({b} parameters)", f"baselines/lora/{b}/seed0", PeftAdapter.load)
        for b in ("1k", "6k", "25k")
    ),
]
