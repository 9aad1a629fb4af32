"""The two questions: probabilities, random adapters, headline."""

import math

import pytest
import torch

import cua
from cua import CUAConfig
from cua.experiments import two_questions
from cua.experiments.two_questions import adapted, ask, headline, loglikelihood, probability


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


def test_random_adapters_turn_as_far_in_other_directions(llama, ids, tmp_path):
    adapter = cua.attach(llama, CUAConfig())
    with torch.no_grad():
        for module in adapter.modules.values():
            module.theta.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    cua.save(adapter, tmp_path / "trained")
    trained = torch.cat([module.theta.detach() for module in adapter.modules.values()])
    logits = llama(ids).logits
    adapter.detach()
    before, found = llama(ids).logits, {}
    for draw in (None, 0, 0, 1):
        with adapted(llama, tmp_path / "trained", draw):
            found.setdefault(draw, []).append(llama(ids).logits)
            thetas = torch.cat([m.theta for m in llama.modules() if hasattr(m, "theta")])
            torch.testing.assert_close(thetas.norm(dim=-1), trained.norm(dim=-1))
    assert torch.equal(found[None][0], logits)
    assert torch.equal(*found[0])
    assert not torch.allclose(found[0][0], found[1][0], atol=0.1)
    assert torch.equal(llama(ids).logits, before)


def test_headline_by_hand():
    def answers(right: float) -> dict:
        rest = math.log((1 - right) / 3)
        return {"rings": {way: [rest, rest, rest, math.log(right)] for way in ("letter", "text")}}

    runs = {"base": answers(0.1)}
    for study in two_questions.STUDIES:
        runs |= {f"{study}/seed{seed}": answers(0.2 + 0.1 * seed) for seed in two_questions.SEEDS}
    runs |= {f"random/{draw}": answers(0.5) for draw in range(two_questions.RANDOM)}
    numbers = headline(runs, {"rings": 3})
    assert numbers["rings_text_base_1.0"]["value"] == pytest.approx(10)
    assert numbers["rings_letter_budget_6k_1.0"]["value"] == pytest.approx(40)
    assert numbers["rings_letter_budget_6k_right"]["value"] == 4
    assert numbers["rings_letter_base_right"]["value"] == 0
    assert numbers["rings_letter_random_right"]["value"] == 10
