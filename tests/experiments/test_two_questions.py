"""The two questions: probabilities and headline."""

import math

import pytest

from cua.experiments import two_questions
from cua.experiments.trained import WIKITEXT
from cua.experiments.two_questions import ask, headline, loglikelihood, probability


def test_temperature_sharpens_and_flattens():
    options = [math.log(0.6), math.log(0.3), math.log(0.1)]
    assert probability(options, 0, 1.0) == pytest.approx(0.6)
    assert probability(options, 0, 0.5) == pytest.approx(0.36 / 0.46)
    assert probability(options, 2, 1e6) == pytest.approx(1 / 3, rel=1e-5)
    assert probability([-1e4, -1e4 - 1], 0, 1.0) == pytest.approx(1 / (1 + math.exp(-1)))


def test_letters_after_the_prompt_are_a_distribution(embedded):
    model, tokenizer = embedded
    row = {"question": "Water is", "subject": "high_school_physics", "choices": ["wet", "dry", "loud", "green"]}
    answers = ask(model, tokenizer, row)
    assert len(answers["letter"]) == len(answers["text"]) == 4
    assert 0 < sum(map(math.exp, answers["letter"])) < 1
    two = loglikelihood(model, tokenizer, "Question: Water is\nAnswer:", " wet and cold")
    assert two < answers["text"][0], "further tokens cost further probability"


def test_headline_by_hand():
    def answers(right: float) -> dict:
        rest = math.log((1 - right) / 3)
        return {"rings": {way: [rest, rest, rest, math.log(right)] for way in ("letter", "text")}}

    runs = {"base": answers(0.1)}
    for model in WIKITEXT:
        runs |= {f"{model}/seed{seed}": answers(0.2 + 0.1 * seed) for seed in two_questions.SEEDS}
    runs |= {f"random/{draw}": answers(0.5) for draw in range(two_questions.RANDOM)}
    numbers = headline(runs, {"rings": 3})
    assert numbers["rings_text_base_1.0"]["value"] == pytest.approx(10)
    assert numbers["rings_letter_cua_6k_1.0"]["value"] == pytest.approx(40)
    assert numbers["rings_letter_cua_6k_right"]["value"] == 4
    assert numbers["rings_letter_base_right"]["value"] == 0
    assert numbers["rings_letter_random_right"]["value"] == 10
