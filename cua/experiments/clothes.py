"""The price of WikiText's clothes: the same passages dressed like WikiText and plain, in nats a word.

Perplexities of a text in two clothes cannot be compared, since their tokens differ; the loss of the whole passage can.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cua.experiments.domains import ELSEWHERE, corpus
from cua.experiments.protocol import mean_interval
from cua.experiments.record import ADAPTERS, Record, adapter_digests
from cua.experiments.trained import WIKITEXT, attached, trained_on_wikitext
from cua.llm.data import Corpus, evenly
from cua.llm.domains import to_plain
from cua.llm.evaluate import perplexity
from cua.llm.models import identity, load_model

SEEDS, MOST = (0, 1, 2), 512  # tokens of a dressed passage at most
CLOTHES = ("dressed", "plain")
SUBJECTS = tuple(domain for domain in ELSEWHERE if domain != "code")  # which a tokenizer of prose would take apart


@dataclass(frozen=True)
class Study:
    """Which texts are asked in both clothes: by name, as :func:`.domains.corpus` calls them when dressed.

    ``documents``: how many of each at most, spread evenly.
    """

    name: str
    question: str
    texts: dict[str, str]
    documents: int | None = None

    def asked(self, tokenizer: PreTrainedTokenizerBase, tests: dict[str, Corpus]) -> dict[str, list[dict[str, str]]]:
        """Passages by text."""
        found = {name: passages(tokenizer, test.documents) for name, test in tests.items()}
        return {name: [every[i] for i in evenly(len(every), self.documents)] for name, every in found.items()}

    def run(self) -> dict[str, Any]:
        """The base model and every adapter on every passage, in both clothes.

        Raises:
            FileNotFoundError: if an adapter is missing, naming the experiment that trains it.
        """
        paths = trained_on_wikitext(SEEDS)
        digests = adapter_digests(paths.values())
        model, tokenizer = load_model()
        tests = {name: corpus(text, "test") for name, text in self.texts.items()}
        asked = self.asked(tokenizer, tests)
        words = {name: [len(passage["plain"].split()) for passage in found] for name, found in asked.items()}
        record = Record(
            {
                "name": self.name,
                "question": self.question,
                "config": {"most": MOST, "words": words, "adapters_sha256": digests},
                "seeds": SEEDS,
                "model": identity(model),
                "data": {name: found.provenance() for name, found in tests.items()},
            }
        )

        def make(key: str) -> dict[str, Any]:
            with attached(model, ADAPTERS / paths[key]) if key in paths else nullcontext():
                return {
                    name: {
                        way: [round(nats(model, tokenizer, passage[way]), 4) for passage in found] for way in CLOTHES
                    }
                    for name, found in asked.items()
                }

        if not record.fill(["base", *paths], make):
            return record.result
        return record.finish(headline(record.result["runs"], words))


ARTICLES = Study(
    "clothes",
    "What do WikiText's clothes cost the base model, and how much of that do adapters trained on WikiText take away?",
    {"wikitext": "wikitext", "wikipedia": "wikipedia in wikitext"},
)
OTHER_SUBJECTS = Study(
    "dressed",
    "Do adapters trained on WikiText help with other subjects, once these are in WikiText's clothes?",
    {subject: f"{subject} in wikitext" for subject in SUBJECTS},
    documents=32,
)
STUDIES = (ARTICLES, OTHER_SUBJECTS)


def passages(tokenizer: PreTrainedTokenizerBase, articles: Iterable[str], most: int = MOST) -> list[dict[str, str]]:
    """The beginning of every article, "dressed" (as it is, in WikiText's clothes) and "plain".

    As many whole lines as have ``most`` tokens at most when dressed; articles whose first line has more are left out.
    """
    found = []
    for article in articles:
        dressed = ""
        for line in article.splitlines(keepends=True):
            if len(_tokens(tokenizer, dressed + line)) > most:
                break
            dressed += line
        if dressed:
            found.append({"dressed": dressed, "plain": to_plain(dressed)})
    return found


def nats(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    """Loss of a whole text, its first token included, which is predicted from a line break."""
    ids = torch.tensor([_tokens(tokenizer, "\n") + _tokens(tokenizer, text)])
    return perplexity(model, ids).nll[0]


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def headline(runs: dict[str, Any], words: dict[str, list[int]]) -> dict[str, dict[str, Any]]:
    """Nats a word of each passage, in the mean over passages; intervals over passages, of changes over seeds as well.

    "price": dressed less plain, of the base model; of an adapter its change in either clothes, and "taken", by how much
    it makes the price smaller.
    """
    numbers = {}
    for name, counts in words.items():
        of = {key: {way: np.array(runs[key][name][way]) / counts for way in CLOTHES} for key in runs}
        base = of["base"]
        for way in CLOTHES:
            numbers[f"base_{name}_{way}"] = mean_interval(base[way], "nats a word")
        numbers[f"{name}_price"] = mean_interval(base["dressed"] - base["plain"], "nats a word")
        price = numbers[f"{name}_price"]["value"]
        for model in WIKITEXT:
            seeds = [of[f"{model}/seed{seed}"] for seed in SEEDS]
            changes = {way: np.array([run[way] - base[way] for run in seeds]) for way in CLOTHES}
            for way in CLOTHES:
                numbers[f"{model}_{name}_{way}"] = _over_seeds_and_passages(changes[way])
            taken = 100 * (changes["plain"] - changes["dressed"]).mean(1) / price
            numbers[f"{model}_{name}_taken"] = mean_interval(taken, "% of the price")
    return numbers


def _over_seeds_and_passages(changes: np.ndarray) -> dict[str, Any]:
    """Mean of ``(seeds, passages)``; half-widths over the ones and over the others add in squares."""
    either = [mean_interval(changes.mean(axis), "nats a word") for axis in (0, 1) if changes.shape[1 - axis] > 1]
    half = float(np.linalg.norm([(number["high"] - number["low"]) / 2 for number in either]))
    value = float(changes.mean())
    return {"value": value, "low": value - half, "high": value + half, "unit": "nats a word"}
