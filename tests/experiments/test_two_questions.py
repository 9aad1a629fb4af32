"""The two questions: probabilities and headline."""

import math

import pytest
import torch

from cua.experiments import two_questions
from cua.experiments.trained import WIKITEXT
from cua.experiments.two_questions import TEMPERATURES, ask, headline, loglikelihood, probability, said


def options(*probabilities: float) -> list[dict[str, float]]:
    """The same at every temperature."""
    return [{str(t): math.log(p) for t in TEMPERATURES} for p in probabilities]


def test_an_option_among_all_and_any_option():
    assert probability(options(0.3, 0.15, 0.05), 0, 1.0) == pytest.approx(0.6)
    assert said(options(0.3, 0.15, 0.05), 1.0) == pytest.approx(0.5)
    far = [{"1.0": -1e4}, {"1.0": -1e4 - 1}]
    assert probability(far, 0, 1.0) == pytest.approx(1 / (1 + math.exp(-1)))


def test_letters_after_the_prompt_are_a_distribution(embedded):
    model, tokenizer = embedded
    row = {"question": "Water is", "subject": "high_school_physics", "choices": ["wet", "dry", "loud", "green"]}
    answers = ask(model, tokenizer, row)
    assert len(answers["letter"]) == len(answers["text"]) == 4
    assert all(0 < said(answers["letter"], t) < 1 for t in TEMPERATURES)
    two = loglikelihood(model, tokenizer, "Question: Water is\nAnswer:", " wet and cold")
    assert all(two[t] < wet for t, wet in answers["text"][0].items()), "further tokens cost further probability"


def test_each_token_is_sampled_at_the_temperature(embedded):
    """Not the whole answer: the logits of every token are divided before they become probabilities."""
    model, tokenizer = embedded
    prompt, answer = "The capital of France is", " Paris of course"
    found = loglikelihood(model, tokenizer, prompt, answer)
    ids = tokenizer(prompt + answer, return_tensors="pt").input_ids
    start = ids.shape[1] - len(tokenizer(answer).input_ids)
    with torch.no_grad():
        logits = model(ids).logits[0]
    for t in TEMPERATURES:
        expected = sum((logits[i - 1] / t).softmax(-1)[ids[0, i]].log().item() for i in range(start, ids.shape[1]))
        assert found[str(t)] == pytest.approx(expected, abs=1e-3)
    assert ids.shape[1] - start > 1


def test_headline_by_hand():
    def answers(right: float, kl: float = 0.1) -> dict:
        rest = (1 - right) / 3
        return {"rings": {way: options(rest, rest, rest, right) for way in ("letter", "text")}, "kl": kl}

    runs = {"base": answers(0.1)}
    for model in WIKITEXT:
        runs |= {f"{model}/seed{seed}": answers(0.2 + 0.1 * seed) for seed in two_questions.SEEDS}
    for kind in ("random", "matched"):
        runs |= {f"{kind}/{draw}": answers(0.3 + 0.01 * draw, draw / 10) for draw in range(two_questions.RANDOM)}
    numbers = headline(runs, {"rings": 3})
    assert numbers["rings_text_base_1.0"]["value"] == pytest.approx(10)
    assert numbers["rings_letter_cua_6k_1.0"]["value"] == pytest.approx(40)
    assert numbers["rings_letter_cua_6k_right"]["value"] == 4
    assert numbers["rings_letter_base_right"]["value"] == 0
    assert numbers["rings_letter_random_right"]["value"] == 10
    assert numbers["rings_letter_cua_1k_said"]["value"] == pytest.approx(100)
    drawn = numbers["rings_text_matched_0.5"]
    assert [drawn[key] for key in ("value", "low", "high")] == pytest.approx([34.5, 30, 39]), "of all draws"
    assert [numbers["random_kl"][key] for key in ("value", "low", "high")] == pytest.approx([0.45, 0, 0.9])
    assert "base_kl" not in numbers
