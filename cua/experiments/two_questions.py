"""The two questions of MMLU that the paper shows, in full: every option, every seed, and adapters that learned nothing.

Two ways to ask: as the harness does, for the letter of the answer, and for the answer itself.  What a sampled answer
would be is computed, not sampled: at temperature T the options have the probabilities p^(1/T)/Z, among themselves.
The random adapters have the trained one's components and, block by block, its |K|, in directions drawn at random.
"""

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cua.experiments.protocol import mean_interval
from cua.experiments.record import ADAPTERS, Record, adapter_digests, digest, point
from cua.experiments.trained import WIKITEXT, attached, trained_on_wikitext
from cua.llm.benchmarks import rows_of
from cua.llm.models import identity, load_model

NAME = "two_questions"
QUESTION = "Are the two corrected questions of MMLU that the paper shows evidence for an adapter?"
ASKED = {"rings": "Which of the jovian planets have rings?", "gene flow": "Gene flow between populations results in"}
SEEDS, RANDOM = (0, 1, 2, 3, 4), 10
TEMPERATURES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def loglikelihood(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> float:
    """Log-probability of the answer's tokens after the prompt, in nats."""
    start = len(tokenizer(prompt).input_ids)
    ids = tokenizer(prompt + answer, return_tensors="pt").input_ids
    with torch.no_grad():
        log_p = model(ids).logits[0, :-1].log_softmax(-1)
    return log_p.gather(-1, ids[0, 1:, None])[start - 1 :].sum().item()


def ask(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> dict[str, list[float]]:
    """Log-probability of each option of a question, as "letter" and as "text"."""
    subject, question = row["subject"].replace("_", " "), row["question"].strip()
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
    prompt = (
        f"The following are multiple choice questions (with answers) about {subject}.\n\n{question}\n{listed}\nAnswer:"
    )
    return {
        "letter": [loglikelihood(model, tokenizer, prompt, f" {letter}") for letter in "ABCD"],
        "text": [loglikelihood(model, tokenizer, f"Question: {question}\nAnswer:", f" {c}") for c in row["choices"]],
    }


def probability(loglikelihoods: list[float], answer: int, temperature: float) -> float:
    """Of one option among all, sampled at a temperature."""
    scaled = np.array(loglikelihoods) / temperature
    weights: NDArray[np.float64] = np.exp(scaled - scaled.max())
    return float(weights[answer] / weights.sum())


def run() -> dict[str, Any]:
    """Both questions to the base model, to every trained adapter and to the random ones.

    Raises:
        FileNotFoundError: if an adapter is missing, naming the experiment that trains it.
    """
    model, tokenizer = load_model()
    rows, source = rows_of("mmlu")
    asked = {label: next(row for row in rows if row["question"] == text) for label, text in ASKED.items()}
    paths = trained_on_wikitext(SEEDS)
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {"asked": asked, "random": RANDOM, "adapters_sha256": adapter_digests(paths.values())},
            "seeds": SEEDS,
            "model": identity(model),
            "data": {"mmlu": {"source": source, "sha256": digest(list(asked.values()))}},
        }
    )
    random = {f"random/{draw}": (paths["cua_6k/seed0"], draw) for draw in range(RANDOM)}
    work: dict[str, tuple[str, int | None]] = {key: (path, None) for key, path in paths.items()} | random
    for key in record.missing(["base", *work]):
        started = time.perf_counter()
        if key == "base":
            answers = {label: ask(model, tokenizer, row) for label, row in asked.items()}
        else:
            path, draw = work[key]
            with attached(model, ADAPTERS / path, draw):
                answers = {label: ask(model, tokenizer, row) for label, row in asked.items()}
        record.add(key, answers, time.perf_counter() - started)
    if not record.has("base", *work):
        return record.result
    return record.finish(headline(record.result["runs"], {label: row["answer"] for label, row in asked.items()}))


def headline(runs: dict[str, Any], answers: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Probability of the right option in per cent, by question, way of asking, temperature and model; over seeds."""
    models = {"base": ["base"], **{model: [f"{model}/seed{seed}" for seed in SEEDS] for model in WIKITEXT}}
    models["random"] = [f"random/{draw}" for draw in range(RANDOM)]
    numbers = {}
    for label, answer in answers.items():
        for way in ("letter", "text"):
            for model, keys in models.items():
                name = f"{label.replace(' ', '_')}_{way}_{model}"
                right = [int(np.argmax(runs[key][label][way]) == answer) for key in keys]
                numbers[f"{name}_right"] = point(sum(right), "models")
                for t in TEMPERATURES:
                    values = [100 * probability(runs[key][label][way], answer, t) for key in keys]
                    numbers[f"{name}_{t}"] = mean_interval(values, "%")
    return numbers
