"""The two questions of MMLU that the paper shows, in full: every option, every seed, and adapters that learned nothing.

Two ways to ask: as the harness does, for the letter of the answer, and for the answer itself.  What a sampled answer
would be is computed, not sampled: at temperature T a model says an option with the product of its tokens' probabilities
softmax(logits / T), and what is reported is that among the four options, and their sum.
The random adapters have the trained one's components.  "random" turns every block as far as training did, in a
direction drawn at random; "matched" so far that the model's predictions change as much as by training.
"""

import time
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cua.experiments.domains import corpus, cut
from cua.experiments.protocol import mean_interval
from cua.experiments.record import ADAPTERS, Record, adapter_digests, digest, point
from cua.experiments.trained import (
    MATCHED_ON,
    MATCHED_WINDOWS,
    PATTERN,
    WIKITEXT,
    attached,
    divergence,
    final_states,
    matched_scale,
    trained_on_wikitext,
)
from cua.llm.benchmarks import rows_of
from cua.llm.models import identity, load_model

NAME = "two_questions"
QUESTION = "Are the two corrected questions of MMLU that the paper shows evidence for an adapter?"
ASKED = {"rings": "Which of the jovian planets have rings?", "gene flow": "Gene flow between populations results in"}
SEEDS, RANDOM = (0, 1, 2, 3, 4), 10  # draws
TEMPERATURES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def loglikelihood(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str
) -> dict[str, float]:
    """Log-probability of the answer's tokens after the prompt, in nats, by the temperature that they are sampled at."""
    start = len(tokenizer(prompt).input_ids)
    ids = tokenizer(prompt + answer, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits[0, start - 1 : -1]
    at = {t: (logits / t).log_softmax(-1).gather(-1, ids[0, start:, None]).sum().item() for t in TEMPERATURES}
    return {str(t): round(value, 5) for t, value in at.items()}


def ask(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> dict[str, Any]:
    """Log-probability of each option of a question by temperature, as "letter" and as "text"."""
    subject, question = row["subject"].replace("_", " "), row["question"].strip()
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
    prompt = (
        f"The following are multiple choice questions (with answers) about {subject}.\n\n{question}\n{listed}\nAnswer:"
    )
    return {
        "letter": [loglikelihood(model, tokenizer, prompt, f" {letter}") for letter in "ABCD"],
        "text": [loglikelihood(model, tokenizer, f"Question: {question}\nAnswer:", f" {c}") for c in row["choices"]],
    }


def probability(options: list[dict[str, float]], answer: int, temperature: float) -> float:
    """Of one option among all, sampled at a temperature."""
    return float(softmax([option[str(temperature)] for option in options])[answer])


def said(options: list[dict[str, float]], temperature: float) -> float:
    """Probability of any of the options, sampled at a temperature; the rest is all else that a model may say."""
    return float(np.exp([option[str(temperature)] for option in options]).sum())


def run() -> dict[str, Any]:
    """Both questions to the base model, to every trained adapter and to the random ones.

    Raises:
        FileNotFoundError: if an adapter is missing, naming the experiment that trains it.
    """
    paths = trained_on_wikitext(SEEDS)
    digests = adapter_digests(paths.values())
    model, tokenizer = load_model()
    rows, source = rows_of("mmlu")
    asked = {label: next(row for row in rows if row["question"] == text) for label, text in ASKED.items()}
    text = corpus(MATCHED_ON, "test")
    windows = cut(tokenizer, text, MATCHED_WINDOWS)
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {"asked": asked, "random": RANDOM, "windows": MATCHED_WINDOWS, "adapters_sha256": digests},
            "seeds": SEEDS,
            "model": identity(model),
            "data": {
                "mmlu": {"source": source, "sha256": digest(list(asked.values()))},
                text.name: text.provenance(),
            },
        }
    )
    before = final_states(model, windows)
    random = [f"{kind}/{draw}" for kind in ("random", "matched") for draw in range(RANDOM)]
    for key in record.missing(["base", *paths, *random]):
        started = time.perf_counter()
        if key == "base":
            run = {label: ask(model, tokenizer, row) for label, row in asked.items()}
        else:
            kind, _, draw = key.partition("/")
            folder, options = ADAPTERS / paths.get(key, paths[PATTERN]), {}
            if key in random:
                scale = 1.0 if kind == "random" else matched_scale(model, folder, int(draw), windows)
                options = {"draw": int(draw), "scale": scale}
            with attached(model, folder, **options):
                run = {label: ask(model, tokenizer, row) for label, row in asked.items()}
                run |= options | {"kl": divergence(model, before, windows)}
        record.add(key, run, time.perf_counter() - started)
        print(f"{key}: {time.perf_counter() - started:.0f} s", flush=True)
    if not record.has("base", *paths, *random):
        return record.result
    return record.finish(headline(record.result["runs"], {label: row["answer"] for label, row in asked.items()}))


def headline(runs: dict[str, Any], answers: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Of each model: probability of the right option by question, way of asking and temperature, in per cent.

    The mean over seeds with its interval; of random adapters the mean with the smallest and the largest of all.
    "right": how many of them give the right option the highest probability; "said": probability of any option at
    temperature 1; "kl": divergence of their predictions from the base model's.
    """
    models = {"base": ["base"], **{model: [f"{model}/seed{seed}" for seed in SEEDS] for model in WIKITEXT}}
    models |= {kind: [f"{kind}/{draw}" for draw in range(RANDOM)] for kind in ("random", "matched")}
    numbers = {}
    for model, keys in models.items():
        summary = _range if model in ("random", "matched") else mean_interval
        if model != "base":
            numbers[f"{model}_kl"] = summary([runs[key]["kl"] for key in keys], "nats")
        for label, answer in answers.items():
            for way in ("letter", "text"):
                name, options = f"{label.replace(' ', '_')}_{way}_{model}", [runs[key][label][way] for key in keys]
                right = [int(np.argmax([option["1.0"] for option in each])) == answer for each in options]
                numbers[f"{name}_right"] = point(sum(right), "models")
                numbers[f"{name}_said"] = summary([100 * said(each, 1.0) for each in options], "%")
                for t in TEMPERATURES:
                    numbers[f"{name}_{t}"] = summary([100 * probability(each, answer, t) for each in options], "%")
    return numbers


def _range(values: list[float], unit: str) -> dict[str, Any]:
    return {"value": float(np.mean(values)), "low": min(values), "high": max(values), "unit": unit}
