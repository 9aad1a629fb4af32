"""Which tokens gain by an adapter, and what a page of the same text gives."""

import math

import pytest
import torch

import cua
from cua import CUAConfig
from cua.experiments.domains import ELSEWHERE, SEEDS, TEXTS
from cua.experiments.gains import KINDS, headline, kinds, losses, summed
from cua.llm.evaluate import perplexity


def test_kinds_of_token(embedded):
    _, tokenizer = embedded
    text = 'He said "no".\n\nOne two three four five six seven, eight.\nShort\nThen'
    ids = torch.tensor([tokenizer(text).input_ids])
    found = [KINDS[k] for k in kinds(tokenizer, ids)[0]]
    told = list(zip(tokenizer.batch_decode(ids.reshape(-1, 1)), found, strict=True))
    assert told[:3] == [("He", "word"), (" said", "word"), (' "', "punctuation")]
    first = [text for text, kind in told].index("One")
    assert [kind for text, kind in told if "\n" in text] == ["line_break"] * 4
    assert [kind for _, kind in told[first : first + 7]] == ["line_start"] * 5 + ["word"] * 2
    assert told[-3:] == [("Short", "line_start"), ("\n", "line_break"), ("Then", "line_start")]
    two = kinds(tokenizer, ids[:, -4:].expand(2, -1))
    assert torch.equal(two[0], two[1]), "windows know nothing of one another"


def test_losses_are_those_of_the_perplexity_and_a_page_changes_them(llama, move):
    windows = torch.randint(97, (3, 16), generator=torch.Generator().manual_seed(1))
    page = torch.randint(97, (3, 10), generator=torch.Generator().manual_seed(2))
    alone = losses(llama, windows)
    assert alone.shape == (3, 15)
    assert alone.sum(1).tolist() == pytest.approx(perplexity(llama, windows).nll, abs=1e-3)
    after = losses(llama, windows, page)
    log_p = llama(torch.cat([page, windows], 1)).logits.log_softmax(-1)[:, 10:-1]
    expected = -log_p.gather(-1, windows[:, 1:, None])[..., 0]
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(after, alone, atol=0.1)
    move(cua.attach(llama, CUAConfig()))
    assert not torch.allclose(losses(llama, windows), alone, atol=0.1)


def test_sums_by_kind_and_by_eighth_are_those_of_the_windows():
    nll = torch.rand(4, 511, generator=torch.Generator().manual_seed(0))
    of_kind = torch.randint(len(KINDS), (4, 512), generator=torch.Generator().manual_seed(1))
    found = summed(nll, nll / 2, of_kind)
    assert found["nll"] == pytest.approx(nll.sum(1).tolist(), abs=1e-3)
    assert found["paged_nll"] == pytest.approx((nll.sum(1) / 2).tolist(), abs=1e-3)
    assert sum(found["by_kind"]) == pytest.approx(sum(found["nll"]), abs=1e-2)
    assert sum(found["tokens_by_kind"]) == found["tokens"] == 4 * 511
    assert [part["tokens"] for part in found["by_eighth"]] == [256] * 7 + [252]
    assert found["by_eighth"][1]["nll"] == pytest.approx(nll[:, 64:128].sum(1).tolist(), abs=1e-3)
    assert found["by_kind"][2] == pytest.approx(nll[of_kind[:, 1:] == 2].sum().item(), abs=1e-2)


def test_headline_by_hand():
    """An adapter gains 0.2 nats a token in the first eighth and none in the others, on words only.

    A page gives 0.3, after which the adapter gains nothing.  On law it gains nothing at all.
    """

    def told(first: float, paged: float, words: float) -> dict:
        eighths = [{"tokens": 20, "nll": [10 * loss] * 2} for loss in (first, *[3.0] * 7)]
        return {
            "tokens": 160,
            "nll": [sum(part["nll"][0] for part in eighths)] * 2,
            "paged_nll": [80 * paged] * 2,
            "by_eighth": eighths,
            "by_kind": [10.0, 10.0, 10.0, words],
            "tokens_by_kind": [10, 20, 10, 120],
        }

    runs = {}
    for text in TEXTS:
        runs[f"{text}/base"] = told(3.0, 2.7, 30.0)
        for seed in SEEDS:
            gain = 0.0 if text == "law" else 0.2
            runs[f"{text}/seed{seed}"] = told(3.0 - gain, 2.7, 26.0)
    numbers = headline(runs)
    assert numbers["news_eighth1"]["value"] == pytest.approx(100 * math.expm1(-0.2))
    assert numbers["news_eighth2"]["value"] == 0
    assert numbers["news_change"]["value"] == pytest.approx(100 * math.expm1(-0.2 / 8))
    assert numbers["law_change"]["value"] == 0
    assert numbers["domains_change"]["value"] == pytest.approx(100 * math.expm1(-0.2 / 8 * 5 / len(ELSEWHERE)))
    assert numbers["domains_page"]["value"] == pytest.approx(100 * math.expm1(-0.3))
    assert numbers["wikitext_in_plain_change_after_page"]["value"] == 0
    assert numbers["code_word_tokens"]["value"] == 75
    assert numbers["code_word_gain"]["value"] == 100
    assert numbers["code_line_break_gain"]["value"] == 0
