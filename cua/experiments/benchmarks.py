"""Benchmarks, question by question: the base model, our adapters, exact and as circuits, and low-rank ones.

One result each.  The base model comes first: every other study asks some of its questions, and compares one by one.
"""

import hashlib
import json
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from qiskit_ibm_runtime.fake_provider import FakeMarrakesh
from transformers import LlamaForCausalLM

import cua
from cua.experiments.baseline_methods import METHODS
from cua.experiments.budget_circuits import DEVICES, SHOTS, execution, one_after_another
from cua.experiments.domains import corpus, cut
from cua.experiments.noise_frontier import CUTOFF
from cua.experiments.paired import corrected_and_broken, mean_over_benchmarks, mean_over_questions
from cua.experiments.protocol import mean_interval
from cua.experiments.record import ADAPTERS, Record, adapter_digests, load_complete, point
from cua.experiments.trained import MATCHED_ON, MATCHED_WINDOWS, attached, matched_scale
from cua.hybrid import run_blocks
from cua.llm.benchmarks import ANSWER_TOKENS, CHOICES, MAX_LENGTH, SCORES, available, benchmark, rows_of
from cua.llm.models import identity, load_model
from cua.quantum.layout import disjoint_paths
from cua.quantum.noise import DeviceNoise

EVERY = {
    "arc_easy": 2,
    "hellaswag": 16,
    "boolq": 6,
    "lambada": 3,
    "mmlu": 12,
    "mmlu_cloze": 24,
    "triviaqa": 8,
    "wikitext": 3,
    "analogies": 1,
}
SOME = {"arc_easy": 4, "hellaswag": 32, "boolq": 12, "lambada": 6, "mmlu_cloze": 48}
TWO = {"arc_easy": 2, "lambada": 3}  # that are within the model's reach: for other seeds
ON_CIRCUITS = {"arc_easy": 4, "lambada": 12, "analogies": 1}  # each token takes a simulator 20 ms
METRICS = {  # the one that counts
    "arc_easy": "acc_norm",
    "hellaswag": "acc_norm",
    "boolq": "acc",
    "lambada": "acc",
    "mmlu": "acc",
    "mmlu_cloze": "acc_norm",
    "triviaqa": "exact_match",
    "analogies": "acc",
}
# To the others a model of this size gives nearly always the same letter or word, or none.
MEAN = ("arc_easy", "hellaswag", "lambada", "mmlu_cloze")
DRAWS = range(5)  # of random directions
OTHER_TEXTS = ("mathematics", "code", "biomedicine", "news", "wikipedia_in_plain")  # see :mod:`.domains`
BASE = "benchmarks_base"
GROUP = 32  # weights of a row that Q4_1 rounds together


def _circuits(adapter: cua.Adapter, device: str) -> AbstractContextManager[None]:
    """Inside this context the blocks run as circuits on a device."""
    backend = FakeMarrakesh()
    chains = disjoint_paths(backend, 2, cutoff=CUTOFF)
    return run_blocks(adapter, one_after_another(execution(device, chains, DeviceNoise(backend), seed=0)))


@torch.no_grad()
def round_again(model: LlamaForCausalLM, shift: int) -> None:
    """Round the weights of all projections in place to four bits, as the embedded model's were (Q4_1 of llama.cpp).

    The least and the largest of :data:`GROUP` weights of a row span sixteen steps.  Groups that are moved by ``shift``
    weights cut the rows elsewhere, so that what has been rounded once is rounded again, by about as much.
    """
    for projection in (module for name, module in model.named_modules() if name.endswith("_proj")):
        weight = projection.weight
        groups = weight.roll(-shift, 1).unflatten(1, (-1, GROUP))
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        step = ((high - low) / 15).clamp_min(torch.finfo(weight.dtype).tiny)
        weight.copy_((((groups - low) / step).round() * step + low).flatten(1).roll(shift, 1))


@dataclass(frozen=True)
class BenchmarkStudy:
    """One model on every benchmark whose rows can be had.

    Attributes:
        name: of the result file.
        question: what it answers.
        adapter: its folder ``EXPERIMENT/NAME``; none for the base model.
        device: one of :data:`DEVICES`, to run our blocks as circuits; none to multiply matrices.
        draw: seed of random directions for our blocks, see :func:`.trained.matched_scale`; none for the trained ones.
        rounded: round the weights of the base model once more, see :func:`round_again`.
        every: only every so many of the rows of each benchmark; those without a number are left out.
    """

    name: str
    question: str
    adapter: str | None = None
    device: str | None = None
    draw: int | None = None
    rounded: bool = False
    every: dict[str, int] = field(default_factory=EVERY.copy)

    def run(self) -> dict[str, Any]:
        """Every benchmark that can be had; those that the base model was not asked are left out as well.

        Raises:
            FileNotFoundError: if the adapter or the base model's result is missing, naming the experiment to run.
            ValueError: if the base model's result is not complete.
        """
        digests = {} if self.adapter is None else adapter_digests([self.adapter], ADAPTERS)
        every = self.every
        base = None if self.name == BASE else same_questions(load_complete(BASE), every)
        special = {"device": self.device, "mitigation": DEVICES[self.device], "shots": SHOTS} if self.device else {}
        found = available(every if base is None else base)
        here = {name: source for name, source in found.items() if not source.startswith("–")}
        model, tokenizer = load_model()
        if self.rounded:
            round_again(model, GROUP // 2)
            special |= {"rounded_again_in_groups_of": GROUP}
        options: dict[str, Any] = {}
        if self.draw is not None:
            windows = cut(tokenizer, corpus(MATCHED_ON, "test"), MATCHED_WINDOWS)
            scale = round(matched_scale(model, ADAPTERS / self.adapter, self.draw, windows), 3)
            options = {"draw": self.draw, "scale": scale}
        record = Record(
            {
                "name": self.name,
                "question": self.question,
                "config": {
                    "adapters_sha256": digests,
                    "every": {name: every[name] for name in here},
                    "max_length": MAX_LENGTH,
                    "answer_tokens": ANSWER_TOKENS,
                    "left_out": [name for name in every if name not in here],
                }
                | special
                | options,
                "seeds": [0],
                "model": identity(model),
                "data": {name: _provenance(name, source, every[name]) for name, source in here.items()},
            }
        )

        def make(name: str) -> dict[str, Any]:
            with ExitStack() as stack:
                if self.adapter is not None:
                    adapter = stack.enter_context(attached(model, ADAPTERS / self.adapter, **options))
                    if self.device is not None:
                        stack.enter_context(_circuits(adapter, self.device))
                scores = benchmark(model, tokenizer, name, every[name])
            return {metric: _packed(metric, values) for metric, values in scores.items()}

        if not record.fill(here, make):
            return record.result
        return record.finish(headline(record.result["runs"], base, every))


def headline(runs: dict[str, Any], base: dict[str, Any] | None, every: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Accuracy on each benchmark, over questions; against the base model also the difference, and both directions.

    "balanced": mean of the accuracies on questions with each of the right options; "constant": of the best answer that
    is always the same; "most": how often the most frequent answer is given; "silent": how often none is.
    "logprob_difference": of the right answer's log-probability.  "some_mean": accuracy over the benchmarks of
    :data:`MEAN` on every so many rows as in :data:`SOME`, where all were asked that could be had.
    """
    numbers = {}
    for name, run in runs.items():
        if "words" in run:
            perplexity = float(np.exp(-sum(run["loglikelihood"]) / sum(run["words"])))
            numbers[f"{name}_word_perplexity"] = point(perplexity, "perplexity")
            continue
        for metric in filter(run.__contains__, SCORES):
            answers, label = unpacked(run[metric]), f"{name}_{metric}"
            numbers[label] = mean_over_questions(answers)
            if base is not None:
                before = unpacked(base[name][metric])
                corrected, broken, p = corrected_and_broken(before, answers)
                numbers[f"{label}_difference"] = mean_over_questions(answers - before)
                numbers[f"{label}_corrected"] = point(corrected, "questions")
                numbers[f"{label}_broken"] = point(broken, "questions")
                numbers[f"{label}_p"] = point(p, "1")
        if "said" in run:
            target, said, right = (unpacked(run[key]) for key in ("target", "said", METRICS[name]))
            options = np.unique(target)
            balanced = np.mean([right[target == option].mean() for option in options])
            numbers[f"{name}_balanced"] = point(100 * float(balanced), "%")
            numbers[f"{name}_constant"] = point(100 * max(np.mean(target == option) for option in options), "%")
            numbers[f"{name}_most"] = point(100 * float(np.bincount(said).max() / len(said)), "%")
        if "silent" in run:
            numbers[f"{name}_silent"] = mean_over_questions(unpacked(run["silent"]))
        if "logprob" in run and base is not None:
            numbers[f"{name}_logprob_difference"] = mean_interval(
                np.subtract(run["logprob"], base[name]["logprob"]), "nats"
            )
    asked = [name for name in MEAN if name in runs]
    if asked and every.keys() >= set(MEAN):
        mine, before = (
            [unpacked(model[n][METRICS[n]])[:: SOME[n] // every[n]] for n in asked] if model else None
            for model in (runs, base)
        )
        numbers["some_mean"] = mean_over_benchmarks(mine)
        if before is not None:
            differences = [now - then for now, then in zip(mine, before, strict=True)]
            numbers["some_mean_difference"] = mean_over_benchmarks(differences)
    return numbers


def same_questions(base: dict[str, Any], every: dict[str, int]) -> dict[str, Any]:
    """A recorded model's answers to the questions of another study, of which it was asked all and more."""
    return {
        name: {
            m: run[m][:: every[name] // base["config"]["every"][name]]
            for m in (*SCORES, *CHOICES, "logprob")
            if m in run
        }
        for name, run in base["runs"].items()
        if name in every
    }


def _packed(metric: str, values: list[float]) -> str | list[float]:
    """Answers as one string of digits."""
    if metric in SCORES + CHOICES:
        return "".join(str(int(v)) for v in values)
    return [round(v, 3) for v in values]


def unpacked(answers: str) -> np.ndarray:
    """One digit for each question: 1 if right and 0 if wrong, or the number of an option."""
    return np.array([int(answer) for answer in answers])


def _provenance(name: str, source: str, every: int) -> dict[str, Any]:
    rows, _ = rows_of(name, every)
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return {"source": source, "questions": len(rows), "sha256": digest.hexdigest()}


def _study(label: str, what: str, adapter: str, device: str | None = None, **options: Any) -> BenchmarkStudy:
    question = f"Which questions do {what} correct, and which do they break?"
    return BenchmarkStudy(f"benchmarks_{label}", question, adapter, device, **options)


STUDIES = [
    BenchmarkStudy(
        BASE,
        "How many questions of each benchmark does the model without an adapter answer?",
        every=EVERY | {"arc_easy": 1},
    ),
    BenchmarkStudy(
        "benchmarks_rounded",
        "What does one more rounding of the weights to four bits, like that of the embedded model, cost on ARC-Easy?",
        rounded=True,
        every={"arc_easy": 1},
    ),
    *(_study(f"cua_{b}", f"our blocks ({b} parameters)", f"budget_{b}/exact-seed0") for b in ("1k", "6k", "25k")),
    *(
        _study(f"cua_6k_seed{seed}", f"our blocks of seed {seed}", f"budget_6k/exact-seed{seed}", every=TWO)
        for seed in (1, 2)
    ),
    *(
        _study(f"random_6k_{d}", f"blocks in random directions, draw {d},", "budget_6k/exact-seed0", draw=d, every=SOME)
        for d in DRAWS
    ),
    *(
        _study(f"trained_on_{text}", f"our blocks, trained on {text},", f"domains/{text}/seed0", every=SOME)
        for text in OTHER_TEXTS
    ),
    _study("cua_6k_copied_signs", "our blocks with copied signs", "budget_6k/sign-constrained-seed0", every=SOME),
    *(
        _study(f"cua_6k_{d}", f"our blocks as circuits ({d})", "budget_6k/exact-seed0", d, every=ON_CIRCUITS)
        for d in DEVICES
    ),
    *(
        _study(f"lora_{b}", f"low-rank matrices ({b} parameters)", f"baselines/lora/{b}/seed0")
        for b in ("1k", "6k", "25k")
    ),
    *(
        _study(f"lora_6k_seed{seed}", f"low-rank matrices of seed {seed}", f"baselines/lora/6k/seed{seed}", every=TWO)
        for seed in (1, 2)
    ),
    *(
        _study(f"{method}_6k", f"adapters of the kind {method}", f"baselines/{method}/6k/seed0", every=SOME)
        for method in METHODS
        if method != "lora"
    ),
]
