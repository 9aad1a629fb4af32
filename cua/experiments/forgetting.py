"""What adapters trained on WikiText do to other text: perplexity, likeness to the base model, angle of hidden states.

Ours and low-rank ones of three sizes, the other methods of PEFT at one, and ours with every block turned in a random
direction, so far that predictions change as much as by training.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from cua.experiments.baseline_methods import METHODS
from cua.experiments.domains import ELSEWHERE, TEXTS, WINDOWS, corpus, cut, cut_formatting, label
from cua.experiments.protocol import change_over_seeds_and_text, mean_interval, percent_of_nats
from cua.experiments.record import ADAPTERS, Record, adapter_digests, point
from cua.experiments.trained import (
    MATCHED_ON,
    MATCHED_WINDOWS,
    PATTERN,
    attached,
    last_states,
    matched_scale,
    trained_on_wikitext,
)
from cua.llm.models import identity, load_model

NAME = "forgetting"
QUESTION = "What does an adapter trained on WikiText cost on other text, and do orthogonal blocks cost less than LoRA?"
SEEDS, DRAWS = (0, 1, 2), (0, 1, 2)
DRESSED = ("wikitext", "wikipedia in wikitext")


@torch.no_grad()
def compare(
    model: LlamaForCausalLM, before: list[Tensor], windows: Tensor, formatting: Tensor | None = None
) -> dict[str, Any]:
    """Two models that share their head, on the same windows.

    Args:
        model: with an adapter.
        before: :func:`.trained.last_states` of the model without.
        windows: ``(n, T)`` token ids.
        formatting: ``(n, T)``, which of them are formatting, see :func:`.domains.cut_formatting`.

    Returns:
        "nll", "base_nll" and "kl" (of the base model's next-token distribution from the model's) in nats, summed over
        each window; "tokens" predicted; and of hidden states after the last layer, mean over all tokens: "angle"
        between the two models' in degrees, and "length", that of the model's relative to the base model's.  With
        ``formatting`` also "formatting_nll" and "formatting_base_nll", the part of the losses that such tokens have,
        and "formatting_tokens".
    """
    found: dict[str, list[float]] = {}
    for i, (ids, h, b) in enumerate(zip(windows, last_states(model, windows), before, strict=True)):
        log_q, log_p = (model.lm_head(model.model.norm(states[0, :-1])).log_softmax(-1) for states in (h, b))
        nll, base_nll = (-log.gather(-1, ids[1:, None])[:, 0] for log in (log_q, log_p))
        cosine = torch.cosine_similarity(h.double(), b.double(), dim=-1)
        of_window = {
            "nll": nll.sum(),
            "base_nll": base_nll.sum(),
            "kl": (log_p.exp() * log_p.sub_(log_q)).sum(),
            "angle": cosine.clamp(-1, 1).arccos().rad2deg().mean(),
            "length": (h.norm(dim=-1) / b.norm(dim=-1)).mean(),
        }
        if formatting is not None:
            marks = formatting[i, 1:]
            of_window |= {"formatting_nll": nll[marks].sum(), "formatting_base_nll": base_nll[marks].sum()}
        for name, value in of_window.items():
            found.setdefault(name, []).append(round(value.item(), 5))
    means = {name: round(float(np.mean(found.pop(name))), 5) for name in ("angle", "length")}
    count = {} if formatting is None else {"formatting_tokens": int(formatting[:, 1:].sum())}
    return {"tokens": windows.shape[0] * (windows.shape[1] - 1)} | found | means | count


def adapters() -> dict[str, str]:
    """Folders by "MODEL/seedN": ours and low-rank ones of every size and seed, one of each other method."""
    others = {f"{method}_6k/seed0": f"baselines/{method}/6k/seed0" for method in METHODS if method != "lora"}
    return trained_on_wikitext(SEEDS) | others


def run() -> dict[str, Any]:
    """Every adapter on every text.

    Raises:
        FileNotFoundError: if an adapter is missing, naming the experiment that trains it.
    """
    paths = adapters()
    digests = adapter_digests(paths.values())
    model, tokenizer = load_model()
    tests = {text: corpus(text, "test") for text in TEXTS}
    tokens = {text: cut(tokenizer, found, WINDOWS) for text, found in tests.items()}
    marks = {text: cut_formatting(tokenizer, tests[text], WINDOWS) for text in DRESSED}
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "windows": WINDOWS,
                "draws": DRAWS,
                "matched_windows": MATCHED_WINDOWS,
                "adapters_sha256": digests,
            },
            "seeds": SEEDS,
            "model": identity(model),
            "data": {text: found.provenance() for text, found in tests.items()},
        }
    )
    before = {text: last_states(model, windows) for text, windows in tokens.items()}
    few = cut(tokenizer, tests[MATCHED_ON], MATCHED_WINDOWS)
    drawn = {f"matched/draw{draw}": draw for draw in DRAWS}

    def make(key: str) -> dict[str, Any]:
        folder, options = ADAPTERS / paths.get(key, paths[PATTERN]), {}
        if key in drawn:
            options = {"draw": drawn[key], "scale": matched_scale(model, folder, drawn[key], few)}
        with attached(model, folder, **options):
            run = {text: compare(model, before[text], ids, marks.get(text)) for text, ids in tokens.items()}
        return run | options

    if not record.fill([*paths, *drawn], make):
        return record.result
    return record.finish(headline(record.result["runs"]))


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of every model the change of perplexity on each text and over all domains, for other seeds and other text.

    "elsewhere": geometric mean over :data:`.domains.ELSEWHERE` of the change; "kl", "angle" and "length": means over
    them, with intervals over seeds.  "words": change of perplexity on what is not formatting; "formatting_share": of
    the gain, how much formatting has; both over seeds.  "against_lora": ours to low-rank ones of the same size, seed by
    seed.
    """
    numbers = {}
    models: dict[str, list[dict[str, Any]]] = {}
    for key in sorted(runs):  # seed by seed
        models.setdefault(key.partition("/")[0], []).append(runs[key])
    for model, seeds in models.items():
        pairs = {text: [(run[text], {"nll": run[text]["base_nll"]}) for run in seeds] for text in TEXTS}
        for text in TEXTS:
            name = f"{model}_on_{label(text)}"
            numbers[name] = change_over_seeds_and_text([pairs[text]])
            if text in DRESSED:
                parts = [by_formatting(run[text]) for run in seeds]
                numbers[f"{name}_words"] = percent_of_nats([words / count for _, words, count in parts])
                shares = [100 * marks / (marks + words) for marks, words, _ in parts]
                numbers[f"{name}_formatting_share"] = mean_interval(shares, "%")
        numbers[f"{model}_elsewhere"] = change_over_seeds_and_text([pairs[text] for text in ELSEWHERE])
        kl = [np.mean([sum(run[text]["kl"]) / run[text]["tokens"] for text in ELSEWHERE]) for run in seeds]
        numbers[f"{model}_kl"] = mean_interval(kl, "nats")
        for name, unit in (("angle", "degrees"), ("length", "1")):
            values = [float(np.mean([run[text][name] for text in ELSEWHERE])) for run in seeds]
            numbers[f"{model}_{name}"] = mean_interval(values, unit)
    for text in DRESSED:
        run = models["cua_6k"][0][text]
        share = 100 * run["formatting_tokens"] / run["tokens"]
        numbers[f"formatting_of_{label(text)}"] = point(share, "% of tokens")
    for size in ("1k", "6k", "25k"):
        both = list(zip(models[f"cua_{size}"], models[f"lora_{size}"], strict=True))
        for name, texts in (("elsewhere", ELSEWHERE), ("on_wikitext", TEXTS[:1])):
            pairs = [[(ours[text], lora[text]) for ours, lora in both] for text in texts]
            numbers[f"against_lora_{size}_{name}"] = change_over_seeds_and_text(pairs)
    return numbers


def by_formatting(run: dict[str, Any]) -> tuple[float, float, int]:
    """Change of the summed loss on formatting and on words, and how many tokens are words."""
    marks = sum(run["formatting_nll"]) - sum(run["formatting_base_nll"])
    everything = sum(run["nll"]) - sum(run["base_nll"])
    return marks, everything - marks, run["tokens"] - run["formatting_tokens"]
