"""Trained adapters on a model for a while, and what they do to other text."""

import math

import pytest
import torch
from peft import LoraConfig

import cua
from cua import CUAConfig
from cua.experiments import forgetting
from cua.experiments.domains import ELSEWHERE, TEXTS
from cua.experiments.forgetting import compare, headline
from cua.experiments.trained import WIKITEXT, attached, divergence, last_states, matched_scale, trained_on_wikitext
from cua.llm.baselines import PeftAdapter
from cua.llm.evaluate import perplexity


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
        with attached(llama, tmp_path / "trained", draw):
            found.setdefault(draw, []).append(llama(ids).logits)
            thetas = torch.cat([m.theta for m in llama.modules() if hasattr(m, "theta")])
            torch.testing.assert_close(thetas.norm(dim=-1), trained.norm(dim=-1))
    assert torch.equal(found[None][0], logits)
    assert torch.equal(*found[0])
    assert not torch.allclose(found[0][0], found[1][0], atol=0.1)
    assert torch.equal(llama(ids).logits, before)


def test_random_adapters_change_predictions_as_much_at_the_matched_scale(llama, tmp_path):
    adapter = cua.attach(llama, CUAConfig())
    with torch.no_grad():
        for module in adapter.modules.values():
            module.theta.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    cua.save(adapter, tmp_path / "trained")
    adapter.detach()
    windows = torch.randint(97, (2, 16), generator=torch.Generator().manual_seed(1))
    before = last_states(llama, windows)
    assert divergence(llama, before, windows) == pytest.approx(0, abs=1e-5)
    with attached(llama, tmp_path / "trained"):
        wanted = divergence(llama, before, windows)
        log_p, log_q = (
            llama.lm_head(llama.model.norm(h)).log_softmax(-1)
            for h in map(torch.cat, (before, last_states(llama, windows)))
        )
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)[:, :-1]
        assert wanted == pytest.approx(kl.mean().item(), rel=1e-3)
    scale = matched_scale(llama, tmp_path / "trained", 5, windows)
    with attached(llama, tmp_path / "trained", 5, scale):
        assert divergence(llama, before, windows) == pytest.approx(wanted, rel=0.03)
    with pytest.raises(ValueError, match=r"draw 5 of .* diverges by .* were wanted"):
        matched_scale(llama, tmp_path / "trained", 5, windows, steps=1)


def test_an_adapter_of_peft_is_attached_and_taken_off(make_llama, ids, tmp_path):
    llama = make_llama()
    before = llama(ids).logits
    adapter = PeftAdapter(llama, LoraConfig(r=1, target_modules=["v_proj"]))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1)
    logits = llama(ids).logits
    adapter.save(tmp_path)
    adapter.detach()
    with attached(llama, tmp_path) as again:
        assert isinstance(again, PeftAdapter)
        assert torch.equal(llama(ids).logits, logits)
    assert torch.equal(llama(ids).logits, before)


def test_paths_name_every_model_and_seed():
    paths = trained_on_wikitext((0, 3))
    assert len(paths) == 2 * len(WIKITEXT)
    assert paths["cua_25k/seed3"] == "budget_25k/exact-seed3"
    assert paths["lora_1k/seed0"] == "baselines/lora/1k/seed0"


def test_a_model_compared_with_itself_and_with_an_adapter(llama):
    windows = torch.randint(97, (3, 16), generator=torch.Generator().manual_seed(1))
    marks = torch.rand(3, 16, generator=torch.Generator().manual_seed(2)) < 0.3
    before, logits = last_states(llama, windows), llama(windows).logits
    same = compare(llama, before, windows)
    assert same["nll"] == same["base_nll"]
    assert same["kl"] == pytest.approx([0.0] * 3, abs=1e-3)
    assert (same["angle"], same["length"]) == (pytest.approx(0, abs=0.01), 1.0)
    halved = compare(llama, [states / 2 for states in before], windows)
    assert halved["length"] == pytest.approx(2), "before the norm, which takes it away"
    assert halved["kl"] == pytest.approx([0.0] * 3, abs=0.01)
    assert "formatting_nll" not in same
    adapter = cua.attach(llama, CUAConfig())
    with torch.no_grad():
        for module in adapter.modules.values():
            module.theta.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    other = compare(llama, before, windows, marks)
    assert other["tokens"] == 3 * 15
    assert other["nll"] == pytest.approx(perplexity(llama, windows).nll, abs=1e-3)
    assert other["base_nll"] == same["base_nll"]
    log_p, log_q = (each[:, :-1].log_softmax(-1) for each in (logits, llama(windows).logits))
    kl = (log_p.exp() * (log_p - log_q)).sum((1, 2))
    assert other["kl"] == pytest.approx(kl.tolist(), abs=1e-3)
    nll = -log_q.gather(-1, windows[:, 1:, None])[..., 0]
    assert other["formatting_nll"] == pytest.approx((nll * marks[:, 1:]).sum(1).tolist(), abs=1e-3)
    assert other["formatting_tokens"] == marks[:, 1:].sum()
    h, b = (torch.cat(states) for states in (last_states(llama, windows), before))
    angle = torch.rad2deg(torch.arccos(torch.cosine_similarity(h, b, dim=-1))).mean()
    assert other["angle"] == pytest.approx(angle.item(), rel=1e-3)


def test_headline_by_hand():
    """Ours gain 0.2 nats a token on WikiText and lose 0.1 elsewhere, LoRA half of both; random blocks lose 1.

    Every sixth token is formatting, and has a quarter of each change.
    """

    def run(wikitext: float, elsewhere: float, angle: float) -> dict:
        texts = {}
        for text in TEXTS:
            change = wikitext if text == "wikitext" else elsewhere
            texts[text] = {"tokens": 30, "nll": [30 + 10 * change] * 3, "base_nll": [30.0] * 3, "kl": [1.0, 2.0, 3.0]}
            texts[text] |= {"formatting_nll": [5 + 2.5 * change] * 3, "formatting_base_nll": [5.0] * 3}
            texts[text] |= {"formatting_tokens": 5, "angle": angle if text in ELSEWHERE else 90.0, "length": 1.0}
        return texts

    runs = {f"matched/draw{draw}": run(1.0, 1.0, 30.0 + draw) for draw in forgetting.DRAWS}
    for key in reversed(forgetting.adapters()):
        runs[key] = run(-0.1, 0.05, 5.0) if key.startswith("lora") else run(-0.2, 0.1, 10.0)
    numbers = headline(runs)
    assert numbers["cua_6k_on_wikitext"]["value"] == pytest.approx(100 * math.expm1(-0.2))
    assert numbers["cua_6k_on_wikitext_words"]["value"] == pytest.approx(100 * math.expm1(-0.2 * 0.75 / (25 / 30)))
    assert numbers["cua_6k_on_wikitext_formatting_share"]["value"] == pytest.approx(25)
    assert numbers["formatting_of_wikitext"]["value"] == pytest.approx(100 / 6)
    assert numbers["lora_1k_elsewhere"]["value"] == pytest.approx(100 * math.expm1(0.05))
    assert numbers["oft_6k_elsewhere"]["value"] == pytest.approx(100 * math.expm1(0.1))
    assert numbers["oft_6k_kl"]["low"] is None, "one seed"
    assert numbers["against_lora_25k_elsewhere"]["value"] == pytest.approx(100 * math.expm1(0.05))
    assert numbers["against_lora_25k_on_wikitext"]["value"] == pytest.approx(100 * math.expm1(-0.1))
    assert numbers["matched_angle"]["value"] == pytest.approx(31)
    assert numbers["matched_angle"]["low"] < 31 < numbers["matched_angle"]["high"]
    assert numbers["cua_1k_kl"]["value"] == pytest.approx(0.2)
