"""Which tokens of a text gain by an adapter that was trained on it, and what the base model gains by a page of it.

A text has a subject and a form: how its documents begin and end, what its lines open with, how it quotes.  Form shows
in the kinds of token that gain.  What kind of text this is, a model also learns from what it reads, so the gain of an
adapter that says no more than that becomes smaller from the start of a window to its end, and with a page of the same
text read first nothing of it is left.
"""

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cua.experiments.domains import ELSEWHERE, SEEDS, TEXTS, WINDOWS, cut, label, read
from cua.experiments.domains import NAME as DOMAINS
from cua.experiments.protocol import change_over_seeds_and_text, mean_interval
from cua.experiments.record import ADAPTERS, Record, adapter_digests, point
from cua.experiments.trained import attached, last_states
from cua.llm.models import identity, load_model

NAME = "gains"
QUESTION = "Which tokens gain by an adapter trained on their kind of text, and does a page of such text give as much?"
KINDS = ("line_break", "line_start", "punctuation", "word")
LINE_START = 5  # tokens after a line break
EIGHTHS = 8  # of a window


def kinds(tokenizer: PreTrainedTokenizerBase, windows: Tensor) -> Tensor:
    """Index into :data:`KINDS` of every token, ``(n, T)``: has a line break; is one of :data:`LINE_START` tokens after
    one; has no letter or digit; any other.

    A window's first tokens are no line start, as it is not known what comes before.
    """
    texts = tokenizer.batch_decode(windows.reshape(-1, 1))
    found = torch.tensor([0 if "\n" in text else 3 if any(map(str.isalnum, text)) else 2 for text in texts])
    found = found.view(windows.shape)
    breaks = found == 0
    for steps in range(1, LINE_START + 1):
        found[:, steps:][breaks[:, :-steps] & ~breaks[:, steps:]] = 1
    return found


@torch.no_grad()
def losses(model: LlamaForCausalLM, windows: Tensor, page: Tensor | None = None) -> Tensor:
    """Loss of every token of each window but the first, in nats, ``(n, T - 1)``.

    Args:
        model: with an adapter or without.
        windows: ``(n, T)`` token ids.
        page: ``(n, P)``, what the model reads ahead of each window.
    """
    sequences = windows if page is None else torch.cat([page, windows], dim=1)
    found = []
    for ids, states in zip(windows, last_states(model, sequences), strict=True):
        logits = model.lm_head(model.model.norm(states[0, -len(ids) : -1]))
        found.append(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none"))
    return torch.stack(found)


def summed(nll: Tensor, paged: Tensor, of_kind: Tensor) -> dict[str, Any]:
    """Losses as they are recorded: "nll" window by window, "paged_nll" of the same tokens after a page, "by_eighth" of
    the window and "by_kind"; "tokens" and "tokens_by_kind" count them.
    """

    def rounded(sums: Tensor) -> list[float]:
        return [round(value, 4) for value in sums.tolist()]

    which = [of_kind[:, 1:] == k for k in range(len(KINDS))]
    return {
        "tokens": nll.numel(),
        "nll": rounded(nll.sum(1)),
        "paged_nll": rounded(paged.sum(1)),
        "by_eighth": [
            {"tokens": part.numel(), "nll": rounded(part.sum(1))} for part in nll.tensor_split(EIGHTHS, dim=1)
        ],
        "by_kind": rounded(torch.stack([nll[mask].sum() for mask in which])),
        "tokens_by_kind": [int(mask.sum()) for mask in which],
    }


def run() -> dict[str, Any]:
    """The base model and the adapters of :mod:`.domains`, each on the text that they were trained on.

    Raises:
        FileNotFoundError: if an adapter is missing, naming the experiment that trains it.
    """
    paths = {f"{text}/seed{seed}": f"{DOMAINS}/{label(text)}/seed{seed}" for text in TEXTS for seed in SEEDS}
    digests = adapter_digests(paths.values())
    model, tokenizer = load_model()
    trains, tokens, data = read(tokenizer)
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "windows": WINDOWS,
                "kinds": KINDS,
                "line_start": LINE_START,
                "eighths": EIGHTHS,
                "adapters_sha256": digests,
            },
            "seeds": SEEDS,
            "model": identity(model),
            "data": data,
        }
    )
    keys = [f"{text}/{who}" for text in TEXTS for who in ("base", *(f"seed{seed}" for seed in SEEDS))]
    pages: dict[str, Tensor] = {}

    def make(key: str) -> dict[str, Any]:
        text, _, _ = key.partition("/")
        ids = tokens[text]
        if text not in pages:
            pages.clear()
            pages[text] = cut(tokenizer, trains[text], len(ids))
        with attached(model, ADAPTERS / paths[key]) if key in paths else nullcontext():
            return summed(losses(model, ids), losses(model, ids, pages[text]), kinds(tokenizer, ids))

    if not record.fill(keys, make):
        return record.result
    return record.finish(headline(record.result["runs"]))


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of every text and, in the geometric mean, of the six domains ("domains").

    Change of perplexity, for other seeds and other text: "change" by the adapter, "page" by a page read first, without
    an adapter, "change_after_page" by the adapter once that has been read, "eighthN" by the adapter in each eighth of
    the window.  Of every text also the share that each kind of token has of all tokens and of the gain (over seeds).
    """
    numbers = {}
    base = {text: runs[f"{text}/base"] for text in TEXTS}
    mine = {text: [runs[f"{text}/seed{seed}"] for seed in SEEDS] for text in TEXTS}
    for name, texts in {"domains": ELSEWHERE, **{label(text): (text,) for text in TEXTS}}.items():
        pairs = [[(run, base[text]) for run in mine[text]] for text in texts]
        numbers[f"{name}_change"] = change_over_seeds_and_text(pairs)
        numbers[f"{name}_page"] = change_over_seeds_and_text([[(_paged(base[text]), base[text])] for text in texts])
        after = [[(_paged(run), _paged(without)) for run, without in seeds] for seeds in pairs]
        numbers[f"{name}_change_after_page"] = change_over_seeds_and_text(after)
        for i in range(EIGHTHS):
            parts = [[(run["by_eighth"][i], without["by_eighth"][i]) for run, without in seeds] for seeds in pairs]
            numbers[f"{name}_eighth{i + 1}"] = change_over_seeds_and_text(parts)
    for text in TEXTS:
        gains = np.array([np.subtract(base[text]["by_kind"], run["by_kind"]) for run in mine[text]])
        shares = 100 * gains / gains.sum(1, keepdims=True)
        tokens = base[text]["tokens_by_kind"]
        for k, kind in enumerate(KINDS):
            numbers[f"{label(text)}_{kind}_tokens"] = point(100 * tokens[k] / sum(tokens), "% of tokens")
            numbers[f"{label(text)}_{kind}_gain"] = mean_interval(shares[:, k], "% of the gain")
    return numbers


def _paged(run: dict[str, Any]) -> dict[str, Any]:
    return {"tokens": run["tokens"], "nll": run["paged_nll"]}
