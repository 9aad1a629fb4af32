"""The two questions of MMLU that the paper shows, in full: every option, every seed, and adapters that learned nothing.

Two ways to ask, both with the four options listed as the harness does: for the letter of the answer, and for the answer
itself.  Small models say the same letter to anything, so each question is asked with its options in all 24 orders, and
what is reported is the mean.  What a sampled answer would be is computed, not sampled: at temperature T a model says an
option with the product of its tokens' probabilities softmax(logits / T); that among the four options is reported, and
their sum.
The random adapters have the trained one's components.  "random" turns every block as far as training did, in a
direction drawn at random; "matched" so far that the model's predictions change as much as by training.
"""

import itertools
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cua.experiments.domains import corpus, cut
from cua.experiments.protocol import mean_interval
from cua.experiments.record import ADAPTERS, Record, adapter_digests, digest
from cua.experiments.trained import (
    MATCHED_ON,
    MATCHED_WINDOWS,
    PATTERN,
    WIKITEXT,
    attached,
    divergence,
    last_states,
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
ORDERS = tuple(itertools.permutations(range(4)))


def loglikelihoods(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str, answers: list[str]
) -> np.ndarray:
    """Log-probability of each answer's tokens after the prompt, in nats, at each of :data:`TEMPERATURES`.

    Returns:
        ``(answers, temperatures)``
    """
    before = tokenizer(prompt).input_ids
    ids = [torch.tensor(tokenizer(prompt + answer).input_ids[len(before) :]) for answer in answers]
    rows = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    with torch.no_grad():
        start = model(torch.tensor([before]), use_cache=True)
        start.past_key_values.batch_repeat_interleave(len(rows))
        rest = model(rows, past_key_values=start.past_key_values).logits[:, :-1]
    logits = torch.cat([start.logits[:, -1:].expand(len(rows), -1, -1), rest], 1)
    at = [(logits / t).log_softmax(-1).gather(-1, rows[..., None])[..., 0] for t in TEMPERATURES]
    found = [[chances[i, : len(answer)].sum().item() for chances in at] for i, answer in enumerate(ids)]
    return np.array(found)


def ask(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> dict[str, Any]:
    """A question in every order of its options, for the "letter" and for the "text" of the answer.

    Returns:
        Of both ways means over the orders: "share", by temperature the probability of each option among all four, in
        the order of the row; "said", that of any of them at temperature 1; "first", in which part of the orders each is
        the most probable.
    """
    subject, question = row["subject"].replace("_", " "), row["question"].strip()
    found: dict[str, list[np.ndarray]] = {"letter": [], "text": []}
    for order in ORDERS:
        choices = [row["choices"][i] for i in order]
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))
        prompt = (
            f"The following are multiple choice questions (with answers) about {subject}.\n\n"
            f"{question}\n{listed}\nAnswer:"
        )
        for way, answers in (("letter", "ABCD"), ("text", choices)):
            nats = loglikelihoods(model, tokenizer, prompt, [f" {answer}" for answer in answers])
            found[way].append(nats[np.argsort(order)])  # back in the order of the row
    return {way: summary(np.array(nats)) for way, nats in found.items()}


def summary(nats: np.ndarray) -> dict[str, Any]:
    """Of log-probabilities ``(orders, options, temperatures)``, see :func:`ask`."""
    share = softmax(nats, axis=1).mean(0).round(5)
    at_one = nats[:, :, TEMPERATURES.index(1.0)]
    first = np.bincount(at_one.argmax(1), minlength=nats.shape[1]) / len(nats)
    return {
        "share": {str(t): share[:, i].tolist() for i, t in enumerate(TEMPERATURES)},
        "said": float(f"{np.exp(at_one).sum(1).mean():.4g}"),  # may be as little as 1e-10
        "first": first.round(5).tolist(),
    }


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
    before = last_states(model, windows)
    random = [f"{kind}/{draw}" for kind in ("random", "matched") for draw in range(RANDOM)]

    def make(key: str) -> dict[str, Any]:
        if key == "base":
            return {label: ask(model, tokenizer, row) for label, row in asked.items()}
        kind, _, draw = key.partition("/")
        folder, options = ADAPTERS / paths.get(key, paths[PATTERN]), {}
        if key in random:
            scale = 1.0 if kind == "random" else matched_scale(model, folder, int(draw), windows)
            options = {"draw": int(draw), "scale": scale}
        with attached(model, folder, **options):
            run = {label: ask(model, tokenizer, row) for label, row in asked.items()}
            return run | options | {"kl": divergence(model, before, windows)}

    if not record.fill(["base", *paths, *random], make):
        return record.result
    return record.finish(headline(record.result["runs"], {label: row["answer"] for label, row in asked.items()}))


def headline(runs: dict[str, Any], answers: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Of each model: probability of the right option by question, way of asking and temperature, in per cent.

    The mean over seeds with its interval; of random adapters the mean with the smallest and the largest of all.
    "right": in how many orders of the options the right one is the most probable; "said": probability of any option at
    temperature 1; "kl": divergence of their predictions from the base model's.
    """
    models = {"base": ["base"], **{model: [f"{model}/seed{seed}" for seed in SEEDS] for model in WIKITEXT}}
    models |= {kind: [f"{kind}/{draw}" for draw in range(RANDOM)] for kind in ("random", "matched")}
    numbers = {}
    for model, keys in models.items():
        over = _range if model in ("random", "matched") else mean_interval
        if model != "base":
            numbers[f"{model}_kl"] = over([runs[key]["kl"] for key in keys], "nats")
        for label, answer in answers.items():
            for way in ("letter", "text"):
                name, asked = f"{label.replace(' ', '_')}_{way}_{model}", [runs[key][label][way] for key in keys]
                numbers[f"{name}_right"] = over([100 * each["first"][answer] for each in asked], "% of orders")
                numbers[f"{name}_said"] = over([100 * each["said"] for each in asked], "%")
                for t in TEMPERATURES:
                    numbers[f"{name}_{t}"] = over([100 * each["share"][str(t)][answer] for each in asked], "%")
    return numbers


def _range(values: list[float], unit: str) -> dict[str, Any]:
    return {"value": float(np.mean(values)), "low": min(values), "high": max(values), "unit": unit}
