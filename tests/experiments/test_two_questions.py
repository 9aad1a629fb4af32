"""The two questions: probabilities and headline."""

import math

import numpy as np
import pytest
import torch

from cua.experiments import two_questions
from cua.experiments.trained import WIKITEXT
from cua.experiments.two_questions import ORDERS, TEMPERATURES, ask, headline, loglikelihoods, summary

ROW = {"question": "Water is", "subject": "high_school_physics", "choices": ["wet", "dry", "loud", "green"]}


def test_shares_are_means_over_the_orders():
    """Two orders; in the first the options have 30, 15, 5 and 0 %, in the second 10 % each."""
    nats = np.array([np.full((4, len(TEMPERATURES)), math.log(0.1))] * 2)
    nats[0] = np.log([0.3, 0.15, 0.05, 1e-300])[:, None]
    found = summary(nats)
    assert found["share"]["0.5"] == pytest.approx([(0.6 + 0.25) / 2, (0.3 + 0.25) / 2, (0.1 + 0.25) / 2, 0.125])
    assert found["said"] == pytest.approx((0.5 + 0.4) / 2)
    assert found["first"] == [1, 0, 0, 0], "of equals the first"
    far = summary(np.full((1, 4, len(TEMPERATURES)), -1e4) - np.arange(4)[:, None])
    assert far["share"]["1.0"][0] == pytest.approx(1 / sum(math.exp(-i) for i in range(4)), abs=1e-5)


def test_each_token_is_sampled_at_the_temperature(embedded):
    """Not the whole answer: the logits of every token are divided before they become probabilities."""
    model, tokenizer = embedded
    prompt, answers = "The capital of France is", [" Paris of course", " Rome", " Paris"]
    found = loglikelihoods(model, tokenizer, prompt, answers)
    assert found.shape == (3, len(TEMPERATURES))
    for answer, nats in zip(answers, found, strict=True):
        ids = tokenizer(prompt + answer, return_tensors="pt").input_ids
        start = ids.shape[1] - len(tokenizer(answer).input_ids)
        with torch.no_grad():
            logits = model(ids).logits[0]
        for t, value in zip(TEMPERATURES, nats, strict=True):
            expected = sum((logits[i - 1] / t).softmax(-1)[ids[0, i]].log().item() for i in range(start, ids.shape[1]))
            assert value == pytest.approx(expected, abs=1e-3)
    assert all(found[0] < found[2]), "further tokens cost further probability"


def test_every_option_stands_at_every_letter(embedded, monkeypatch):
    """A model that says nothing but A, and one that knows the answer."""
    model, tokenizer = embedded
    assert len(ORDERS) == 24

    def says_a(model, tokenizer, prompt, answers):
        at = [
            0.0 if answer == " A" or answer == f" {prompt.split('A. ')[1].splitlines()[0]}" else -9.0
            for answer in answers
        ]
        return np.repeat(np.array(at)[:, None], len(TEMPERATURES), 1)

    def knows(model, tokenizer, prompt, answers):
        letter = next(line[0] for line in prompt.splitlines() if line.endswith(". loud"))
        at = [0.0 if answer in (f" {letter}", " loud") else -9.0 for answer in answers]
        return np.repeat(np.array(at)[:, None], len(TEMPERATURES), 1)

    monkeypatch.setattr(two_questions, "loglikelihoods", says_a)
    for found in ask(model, tokenizer, ROW).values():
        assert found["first"] == pytest.approx([0.25] * 4)
        assert found["share"]["1.0"] == pytest.approx([0.25] * 4)
    monkeypatch.setattr(two_questions, "loglikelihoods", knows)
    for found in ask(model, tokenizer, ROW).values():
        assert found["first"] == [0, 0, 1, 0]
        assert found["share"]["1.0"][2] > 0.99


def test_the_model_is_asked_as_the_harness_asks(embedded, monkeypatch):
    model, tokenizer = embedded
    monkeypatch.setattr(two_questions, "ORDERS", ((1, 0, 2, 3),))
    found = ask(model, tokenizer, ROW)
    prompt = "The following are multiple choice questions (with answers) about high school physics.\n\n"
    prompt += "Water is\nA. dry\nB. wet\nC. loud\nD. green\nAnswer:"
    for way, answers in (("letter", " B A C D"), ("text", " wet dry loud green")):
        nats = loglikelihoods(model, tokenizer, prompt, [f" {answer}" for answer in answers.split()])
        assert found[way] == summary(nats[None])
    assert 0 < found["text"]["said"] < 1


def test_headline_by_hand():
    def answers(right: float, kl: float = 0.1) -> dict:
        rest = (1 - right) / 3
        share = {str(t): [rest, rest, rest, right] for t in TEMPERATURES}
        asked = {"share": share, "said": 0.5, "first": [0.5, 0, 0, 0.5] if right < 0.35 else [0, 0, 0, 1.0]}
        return {"rings": dict.fromkeys(("letter", "text"), asked), "kl": kl}

    runs = {"base": answers(0.1)}
    for model in WIKITEXT:
        runs |= {f"{model}/seed{seed}": answers(0.2 + 0.1 * seed) for seed in two_questions.SEEDS}
    for kind in ("random", "matched"):
        runs |= {f"{kind}/{draw}": answers(0.3 + 0.01 * draw, draw / 10) for draw in range(two_questions.RANDOM)}
    numbers = headline(runs, {"rings": 3})
    assert numbers["rings_text_base_1.0"]["value"] == pytest.approx(10)
    assert numbers["rings_letter_cua_6k_1.0"]["value"] == pytest.approx(40)
    assert numbers["rings_letter_cua_6k_right"]["value"] == pytest.approx(80), "half of the orders twice, all thrice"
    assert numbers["rings_letter_base_right"]["value"] == 50
    assert numbers["rings_letter_cua_1k_said"]["value"] == pytest.approx(50)
    drawn = numbers["rings_text_matched_0.5"]
    assert [drawn[key] for key in ("value", "low", "high")] == pytest.approx([34.5, 30, 39]), "of all draws"
    assert [numbers["random_kl"][key] for key in ("value", "low", "high")] == pytest.approx([0.45, 0, 0.9])
    assert "base_kl" not in numbers
