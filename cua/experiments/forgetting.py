"""What adapters trained on WikiText do to other text: perplexity, likeness to the base model, angle of hidden states.

Ours and low-rank ones of three sizes, and ours with every block turned as far in a random direction.
"""

import copy
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from cua.experiments.domains import TEXTS, WINDOWS, corpus, cut
from cua.experiments.protocol import change_over_text, mean_interval, percent_of_nats
from cua.experiments.record import ADAPTERS, Record, adapter_digests
from cua.experiments.trained import WIKITEXT, attached, trained_on_wikitext
from cua.llm.domains import DOMAINS
from cua.llm.loss import distillation_kl, next_token_nll
from cua.llm.models import identity, load_model

NAME = "forgetting"
QUESTION = "What does an adapter trained on WikiText cost on other text, and do orthogonal blocks cost less than LoRA?"
SEEDS, DRAWS = (0, 1, 2), (0, 1, 2)
RANDOM = "cua_6k/seed0"  # whose blocks are turned in random directions


@torch.no_grad()
def compare(model: LlamaForCausalLM, base: LlamaForCausalLM, windows: Tensor) -> dict[str, Any]:
    """Two models that share their head, on the same windows.

    Args:
        model: with an adapter.
        base: without.
        windows: ``(n, T)`` token ids.

    Returns:
        "nll", "base_nll" and "kl" (of the base model's next-token distribution from the model's) in nats, summed over
        each window; "tokens" predicted; and of hidden states after the final norm, mean over all tokens: "angle"
        between the two models' in degrees, and "length", that of the model's relative to the base model's.
    """
    found: dict[str, list[float]] = {name: [] for name in ("nll", "base_nll", "kl", "angle", "length")}
    for ids in windows.split(1):
        h, before = (m.model(ids).last_hidden_state for m in (model, base))
        cosine = torch.cosine_similarity(h.double(), before.double(), dim=-1)
        found["nll"].append(next_token_nll(h, base.lm_head, ids).item())
        found["base_nll"].append(next_token_nll(before, base.lm_head, ids).item())
        found["kl"].append(distillation_kl(h, base.lm_head, before, 1.0).item())
        found["angle"].append(cosine.clamp(-1, 1).arccos().rad2deg().mean().item())
        found["length"].append((h.norm(dim=-1) / before.norm(dim=-1)).mean().item())
    of_windows = {name: [round(value, 4) for value in found[name]] for name in ("nll", "base_nll", "kl")}
    means = {name: round(float(np.mean(found[name])), 5) for name in ("angle", "length")}
    return {"tokens": windows.shape[0] * (windows.shape[1] - 1)} | of_windows | means


def run() -> dict[str, Any]:
    """Every adapter on every text.

    Raises:
        FileNotFoundError: if an adapter is missing, naming the experiment that trains it.
    """
    paths = trained_on_wikitext(SEEDS)
    digests = adapter_digests(paths.values())
    base, tokenizer = load_model()
    model = copy.deepcopy(base)
    tests = {text: corpus(text, "test") for text in TEXTS}
    tokens = {text: cut(tokenizer, found, WINDOWS) for text, found in tests.items()}
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {"windows": WINDOWS, "draws": DRAWS, "adapters_sha256": digests},
            "seeds": SEEDS,
            "model": identity(base),
            "data": {text: found.provenance() for text, found in tests.items()},
        }
    )
    work: dict[str, tuple[str, int | None]] = {key: (path, None) for key, path in paths.items()}
    work |= {f"random/draw{draw}": (paths[RANDOM], draw) for draw in DRAWS}
    for key in record.missing(work):
        started = time.perf_counter()
        path, draw = work[key]
        with attached(model, ADAPTERS / path, draw):
            run = {text: compare(model, base, ids) for text, ids in tokens.items()}
        record.add(key, run, time.perf_counter() - started)
        print(f"{key}: {time.perf_counter() - started:.0f} s", flush=True)
    if not record.has(*work):
        return record.result
    return record.finish(headline(record.result["runs"]))


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of every model, over its seeds: change of perplexity on each text (also over text), and over all domains.

    "elsewhere": geometric mean over :data:`DOMAINS` of the change; "kl", "angle" and "length": means over them.
    "against_lora": ours to low-rank ones of the same size, seed by seed.
    """
    numbers = {}
    models = {model: [runs[f"{model}/seed{seed}"] for seed in SEEDS] for model in WIKITEXT}
    models["random"] = [runs[f"random/draw{draw}"] for draw in DRAWS]
    changes = {model: {text: [_nats(run[text]) for run in seeds] for text in TEXTS} for model, seeds in models.items()}
    for model, seeds in models.items():
        for text in TEXTS:
            name = f"{model}_on_{text.replace(' ', '_')}"
            numbers[name] = percent_of_nats(changes[model][text])
            pairs = [(run[text], {"nll": run[text]["base_nll"]}) for run in seeds]
            numbers[f"{name}_over_text"] = change_over_text(pairs)
        numbers[f"{model}_elsewhere"] = percent_of_nats(_elsewhere(changes[model]))
        kl = [np.mean([sum(run[text]["kl"]) / run[text]["tokens"] for text in DOMAINS]) for run in seeds]
        numbers[f"{model}_kl"] = mean_interval(kl, "nats")
        for name, unit in (("angle", "degrees"), ("length", "1")):
            values = [float(np.mean([run[text][name] for text in DOMAINS])) for run in seeds]
            numbers[f"{model}_{name}"] = mean_interval(values, unit)
    for size in ("1k", "6k", "25k"):
        ours, lora = (changes[f"{kind}_{size}"] for kind in ("cua", "lora"))
        numbers[f"against_lora_{size}_elsewhere"] = percent_of_nats(_elsewhere(ours) - _elsewhere(lora))
        numbers[f"against_lora_{size}_on_wikitext"] = percent_of_nats(np.subtract(ours["wikitext"], lora["wikitext"]))
    return numbers


def _elsewhere(changes: dict[str, list[float]]) -> np.ndarray:
    return np.mean([changes[text] for text in DOMAINS], axis=0)


def _nats(run: dict[str, Any]) -> float:
    """Change of the mean loss against the base model's."""
    return (sum(run["nll"]) - sum(run["base_nll"])) / run["tokens"]
