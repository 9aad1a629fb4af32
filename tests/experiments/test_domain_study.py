"""The texts that adapters are measured on, and how their changes are put together."""

import math

import pytest
import torch

from cua.experiments import domains
from cua.experiments.bench import Bench
from cua.experiments.domains import TEXTS, corpus, cut, cut_formatting, unseen
from cua.llm.domains import load_domain, to_plain, to_wikitext


def test_clothes_go_on_document_by_document():
    bare, dressed, plain = (corpus(f"wikipedia{clothes}", "test") for clothes in ("", " in wikitext", " in plain"))
    assert dressed.documents == tuple(map(to_wikitext, bare.documents))
    assert plain.documents == tuple(map(to_plain, dressed.documents))
    assert bare.text.count("''") > 100 > plain.text.count("''"), "marks of emphasis are gone from both"
    assert dressed.provenance()["name"] == "wikipedia in wikitext"
    assert len({found.provenance()["sha256"] for found in (bare, dressed, plain)}) == 3


def test_formatting_is_marked_token_by_token(embedded):
    _, tokenizer = embedded
    text = corpus("wikipedia in wikitext", "test")
    ids, marks = cut(tokenizer, text, 5), cut_formatting(tokenizer, text, 5)
    assert marks.shape == ids.shape
    kinds = {mark: {tokenizer.decode(t) for t in ids[marks == mark]} for mark in (True, False)}
    assert {" ,", " .", " \n"} <= kinds[True]
    assert {" the", " of", " and"} <= kinds[False]
    assert not any(c.isalnum() for token in kinds[True] for c in token)
    assert 0.05 < marks.float().mean() < 0.3


def test_windows_are_spread_over_a_long_text_and_all_of_a_short_one(embedded):
    _, tokenizer = embedded
    everything = cut(tokenizer, corpus("news", "test"))
    assert torch.equal(cut(tokenizer, corpus("news", "test"), 1000), everything)
    some = cut(tokenizer, corpus("news", "test"), 3)
    assert torch.equal(some[[0, -1]], everything[[0, -1]])


def test_documents_that_repeat_the_train_split_are_left_out():
    train = ["one two three four five six seven eight nine ten"]
    mostly, little = f"{train[0]} and more", f"{train[0]} {' '.join(map(str, range(40)))}"
    assert unseen([train[0], mostly, little, "too short"], train) == (little, "too short")
    assert unseen([train[0]], []) == (train[0],)
    news = [load_domain("news", split).documents for split in ("test", "train")]
    assert corpus("news", "test").documents == unseen(*news)
    assert len(unseen(*news)) == len(news[0]) - 1, "one of its texts comes twice"


def test_training_here_measures_every_text(frozen, monkeypatch, tmp_path):
    tokens = {
        text: torch.randint(97, (2, 16), generator=torch.Generator().manual_seed(i)) for i, text in enumerate(TEXTS)
    }
    bench = Bench(frozen, tokens | {"train": tokens[TEXTS[0]]}, {})
    small = domains.replace(domains.STUDY, blocks=tuple((projection, 2) for projection, _ in domains.STUDY.blocks))
    monkeypatch.setattr(domains, "STUDY", small)
    monkeypatch.setattr(domains, "TRAINING", domains.replace(domains.TRAINING, steps=3))
    run = domains._fit(bench, 1, tmp_path)
    assert tuple(run["texts"]) == TEXTS
    assert run["parameters"] == 36
    assert {"perplexity", "tokens", "nll"} <= run["texts"]["wikitext"].keys()
    assert "perplexity" not in run
    assert (tmp_path / "adapter.json").is_file()
    assert run["texts"]["law"]["perplexity"] != run["texts"]["code"]["perplexity"]


def test_headline_by_hand():
    """Base 20 on every text; trained on law 18, 19 and 20 there, 22 elsewhere; all others 20."""

    def texts(level: float, law: float) -> dict:
        def run(value: float) -> dict:
            return {"perplexity": value, "nll": [5 * math.log(value)] * 4, "tokens": 20}

        return {"texts": {text: run(law if text == "law" else level) for text in TEXTS}}

    runs = {"base": texts(20.0, 20.0)}
    for trained_on in TEXTS:
        for seed in domains.SEEDS:
            own = trained_on == "law"
            runs[f"{trained_on}/seed{seed}"] = texts(22.0 if own else 20.0, 18.0 + seed if own else 20.0)
    numbers = domains.headline(runs)
    assert numbers["change_law_on_law"]["value"] == pytest.approx(100 * ((0.9 * 0.95) ** (1 / 3) - 1))
    assert numbers["change_law_on_law"]["low"] < -10 < -5 < numbers["change_law_on_law"]["high"]
    assert numbers["change_law_on_wikitext_in_plain"]["value"] == pytest.approx(10.0)
    assert numbers["change_code_on_wikipedia_in_wikitext"]["value"] == 0
    assert numbers["base_code"]["value"] == 20
