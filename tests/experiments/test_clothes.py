"""Passages in two clothes, and what their loss says of an adapter."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import t

from cua.experiments import clothes
from cua.experiments.clothes import headline, nats, passages
from cua.experiments.domains import corpus
from cua.experiments.trained import trained_on_wikitext

ARTICLES = (
    " = Ships = \n It cost 1 @,@ 000 pounds . \n Both sank . \n",
    " = Ports = \n" + " It has a port ( and a ship ) . \n" * 9,
)


def test_passages_are_whole_lines_that_fit_in_both_clothes(embedded):
    _, tokenizer = embedded
    short, long = passages(tokenizer, ARTICLES, 60)
    assert short == {"dressed": ARTICLES[0], "plain": "Ships\n\nIt cost 1,000 pounds.\n\nBoth sank.\n\n"}
    assert ARTICLES[1].startswith(long["dressed"])
    assert long["dressed"].endswith(". \n")
    line = ARTICLES[1].splitlines(keepends=True)[-1]
    lengths = [len(tokenizer(text)["input_ids"]) for text in (long["dressed"], long["dressed"] + line)]
    assert lengths[0] <= 60 < lengths[1]
    assert passages(tokenizer, ARTICLES, 2) == [], "no line fits"


def test_the_loss_of_a_passage_has_its_first_token(embedded):
    model, tokenizer = embedded
    ids = torch.tensor([tokenizer("\nShips sank.").input_ids])
    with torch.no_grad():
        chances = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])
    assert len(chances) == len(tokenizer("Ships sank.").input_ids)
    assert nats(model, tokenizer, "Ships sank.") == pytest.approx(-chances.sum().item(), abs=1e-3)


def test_headline_by_hand():
    """Clothes cost a nat a word; LoRA takes a quarter of it away, ours half, and both make plain words harder."""
    words = {"wikitext": [100, 50], "wikipedia": [10]}

    def run(dressed: float, plain: float) -> dict:
        return {
            name: {"dressed": [n * dressed for n in counts], "plain": [n * plain for n in counts]}
            for name, counts in words.items()
        }

    runs = {"base": run(5.0, 4.0)}
    for key in reversed(trained_on_wikitext(clothes.SEEDS)):
        runs[key] = run(4.5, 4.1) if key.startswith("cua") else run(4.75, 4.05)
    numbers = headline(runs, words)
    assert numbers["base_wikitext_dressed"]["value"] == pytest.approx(5)
    assert numbers["wikipedia_price"] == {"value": pytest.approx(1), "low": None, "high": None, "unit": "nats a word"}
    assert numbers["cua_6k_wikitext_dressed"]["value"] == pytest.approx(-0.5)
    assert numbers["cua_6k_wikitext_plain"]["value"] == pytest.approx(0.1)
    assert numbers["cua_25k_wikipedia_taken"]["value"] == pytest.approx(60), "its price is 4.5 - 4.1"
    assert numbers["lora_1k_wikitext_taken"]["value"] == pytest.approx(30)
    uneven = runs["cua_1k/seed0"] | {"wikitext": {"dressed": [400.0, 250.0], "plain": [400.0, 200.0]}}
    found = headline(runs | {"cua_1k/seed0": uneven}, words)["cua_1k_wikitext_dressed"]
    assert found["value"] == pytest.approx(-0.5), "the mean over passages: (-1 + 0) / 2"
    assert found["low"] == pytest.approx(-0.5 - t.ppf(0.975, 1) / 6), "-2/3 and -1/3, the means over seeds"


def test_other_subjects_are_spread_over_their_documents_and_have_no_title(embedded):
    study = replace(clothes.OTHER_SUBJECTS, documents=3)
    tests = {"news": corpus("news in wikitext", "test")}
    found = study.asked(embedded[1], tests)["news"]
    every = passages(embedded[1], tests["news"].documents)
    assert found == [every[0], every[(len(every) - 1) // 2], every[-1]]
    assert not any("=" in passage["dressed"] for passage in found)
    assert " , " in found[0]["dressed"]
    assert ", " in found[0]["plain"].replace(" , ", "")
