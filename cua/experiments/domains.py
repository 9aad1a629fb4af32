"""Adapters of 6,138 parameters trained on one text each, and measured on all others, sixty steps at one rate.

The texts are of several domains, and WikiText as well as other Wikipedia articles in WikiText's clothes and in plain
ones: those four tell what is said from how it is written.  Adapters trained on WikiText for longer, and of other sizes
and kinds, are measured by :mod:`.forgetting`.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cua.experiments.bench import TRAIN_WINDOW, Bench, wikitext_splits
from cua.experiments.budgets import BUDGETS
from cua.experiments.placement import TRAINING
from cua.experiments.protocol import change_over_seeds_and_text, chosen_groups, used
from cua.experiments.record import ADAPTERS, Record, point
from cua.llm.data import Corpus, evenly, load_corpus, windows
from cua.llm.domains import DOMAINS, formatting, load_domain, to_plain, to_wikitext
from cua.llm.models import identity, load_model

NAME = "domains"
QUESTION = "What does an adapter learn from a text, its subject or its way of writing, and where else does that help?"
SEEDS, WINDOWS = (0, 1, 2), 16  # windows at most of each text, spread evenly
RUN, SEEN = 8, 0.2  # words in a row; share of such runs that a test document may have in common with the train split
STUDY = BUDGETS[1]
CLOTHES = ("wikitext", "wikitext in plain", "wikipedia in wikitext", "wikipedia in plain")
ELSEWHERE = tuple(domain for domain in DOMAINS if domain != "wikipedia")
TEXTS = (*CLOTHES, *ELSEWHERE)


def corpus(text: str, split: str) -> Corpus:
    """ "train" or "test" of one of :data:`TEXTS`, or of a domain "in wikitext" or "in plain".

    WikiText's train split is that of :func:`wikitext_splits`.  Plain clothes are what is left when WikiText's are taken
    off; other text is put into WikiText's first.  Test documents that repeat the train split, see :func:`unseen`, are
    left out.
    """
    name, _, clothes = text.partition(" in ")
    found = _bare(name, split)
    documents = found.documents
    if split == "test":
        documents = unseen(documents, _bare(name, "train").documents)
    if name != "wikitext" and clothes:
        documents = tuple(to_wikitext(document, headings=name == "wikipedia") for document in documents)
    if clothes == "plain":
        documents = tuple(map(to_plain, documents))
    return replace(found, name=text, documents=documents)


def _bare(name: str, split: str) -> Corpus:
    if name != "wikitext":
        return load_domain(name, split)
    return wikitext_splits()["train"] if split == "train" else load_corpus("wikitext-2", split)


def unseen(documents: Iterable[str], train: Iterable[str]) -> tuple[str, ...]:
    """Documents of which at most :data:`SEEN` of all runs of :data:`RUN` words are in ``train`` as well.

    Exam questions share their stories, and books their sentences.
    """
    known = set().union(*map(_runs, train))
    return tuple(d for d in documents if len((mine := _runs(d)) & known) <= SEEN * len(mine))


def _runs(document: str) -> set[tuple[str, ...]]:
    words = document.split()
    return set(zip(*(words[i:] for i in range(RUN)), strict=False))


def cut(tokenizer: PreTrainedTokenizerBase, text: Corpus, most: int | None = None) -> Tensor:
    """Windows of a corpus, spread evenly where there are more than ``most``."""
    found = windows(tokenizer, text.text, TRAIN_WINDOW)
    return found[evenly(len(found), most)]


def cut_formatting(tokenizer: PreTrainedTokenizerBase, text: Corpus, most: int | None = None) -> Tensor:
    """Which tokens of :func:`cut` are formatting, of a text in WikiText's clothes: ``(windows, T)``, bool.

    Those without a letter or digit that have a character which plain clothes do without.
    """
    marks = formatting(text.text)
    spans = tokenizer(text.text, add_special_tokens=False, verbose=False, return_offsets_mapping=True).offset_mapping
    found = [any(marks[a:b]) and not any(c.isalnum() for c in text.text[a:b]) for a, b in spans]
    rows = torch.tensor(found[: len(found) // TRAIN_WINDOW * TRAIN_WINDOW]).view(-1, TRAIN_WINDOW)
    return rows[evenly(len(rows), most)]


def read(
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[dict[str, Corpus], dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Of every text the train split, the windows for testing, and where both splits are from, as it is recorded."""
    tests, trains = ({text: corpus(text, split) for text in TEXTS} for split in ("test", "train"))
    tokens = {text: cut(tokenizer, found, WINDOWS) for text, found in tests.items()}
    data = {text: found.provenance() for text, found in tests.items()}
    data |= {f"{text}, train": found.provenance() for text, found in trains.items()}
    return trains, tokens, data


def run() -> dict[str, Any]:
    """The base model and an adapter for every text and seed, each on every text."""
    model, tokenizer = load_model()
    trains, tokens, data = read(tokenizer)
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "windows": WINDOWS,
                "window": TRAIN_WINDOW,
                "unseen": {"run": RUN, "share": SEEN},
                "adapter": used(STUDY.adapter) | {"blocks": dict(STUDY.blocks)},
                "training": {k: v for k, v in used(TRAINING).items() if k != "seed"},
            },
            "seeds": SEEDS,
            "model": identity(model),
            "data": data,
        }
    )
    trained = {f"{text}/seed{seed}": (text, seed) for text in TEXTS for seed in SEEDS}
    benches: dict[str, Bench] = {}

    def make(key: str) -> dict[str, Any]:
        if key in trained:
            text, seed = trained[key]
            if text not in benches:
                benches.clear()
                benches[text] = Bench(model, tokens | {"train": cut(tokenizer, trains[text])}, {})
            return _fit(benches[text], seed, ADAPTERS / NAME / label(key))
        bench = Bench(model, tokens, {})
        return {"texts": {text: bench.measure(text, 0) for text in TEXTS}}

    if not record.fill(["base", *trained], make):
        return record.result
    return record.finish(headline(record.result["runs"]))


def _fit(bench: Bench, seed: int, folder: Path) -> dict[str, Any]:
    groups = chosen_groups(
        bench.gradients(STUDY.adapter.target_modules, STUDY.adapter.side), STUDY.adapter, STUDY.blocks
    )
    run = bench.fit(STUDY.adapter, replace(TRAINING, seed=seed), folder, TEXTS, groups, 0)
    texts = {text: run.pop(text) for text in TEXTS[1:]}
    first = {key: run.pop(key) for key in ("perplexity", "tokens", "nll")}  # of the first text
    return run | {"texts": {TEXTS[0]: first} | texts}


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Base perplexity of every text; its change by what the adapter was trained on, for other seeds and other text."""
    base = runs["base"]["texts"]
    numbers = {f"base_{label(text)}": point(base[text]["perplexity"], "perplexity") for text in TEXTS}
    for trained_on in TEXTS:
        mine = [runs[f"{trained_on}/seed{seed}"]["texts"] for seed in SEEDS]
        for text in TEXTS:
            pairs = [(run[text], base[text]) for run in mine]
            numbers[f"change_{label(trained_on)}_on_{label(text)}"] = change_over_seeds_and_text([pairs])
    return numbers


def label(text: str) -> str:
    """How a text is called in a headline and as a folder."""
    return text.replace(" ", "_")
