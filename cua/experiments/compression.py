"""What adapters win back of a compressed model's loss, with controls for what is mere adaptation to the text.

With P the perplexity of the original model, C of the compressed one and A of the compressed one with its adapter, the
recovered share is (C - A) / (C - P).  It counts adaptation to WikiText as recovery.  So the original is trained in the
same way, to perplexity P', and the **net share** says how much of the gap between the two models, in nats a token, is
closed when both are adapted: 1 - ln(A / P') / ln(C / P).  And on text of another kind, which the adapters were not
trained on, every model's distribution is compared with the original's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig
from torch import Tensor

from cua.experiments.bench import TEST_WINDOW, Bench, run_of
from cua.experiments.budgets import BUDGETS
from cua.experiments.protocol import chosen_groups, mean_interval, percent_change, schedule, used
from cua.experiments.record import Record, point
from cua.llm.architectures import PROJECTIONS
from cua.llm.compression import Compression, compress, input_moments
from cua.llm.data import evenly, load_corpus, windows
from cua.llm.evaluate import Perplexity
from cua.llm.loss import distillation_kl, next_token_nll
from cua.llm.models import identity, load_model
from cua.llm.prefix import SplitModel
from cua.llm.train import TrainConfig, teacher_states

Run = dict[str, Any]

NAME = "compression"
QUESTION = "How much of a compressed model's loss do adapters win back, and how much of that is adaptation to the text?"
COMPRESSIONS = {
    "svd_mild": Compression("svd", layers=tuple(range(1, 30, 3))),
    "svd_strong": Compression("svd", layers=tuple(i for i in range(30) if i % 3)),
    "tensor_train_mild": Compression("tensor train", layers=tuple(range(1, 30, 6))),
    "tensor_train_strong": Compression("tensor train", layers=tuple(range(1, 30, 3))),
    "quantised_mild": Compression("quantised", target_modules=PROJECTIONS, bits=4, group=64),
    "quantised_strong": Compression("quantised", target_modules=PROJECTIONS, bits=3, group=32),
}
CLAIMED = "svd_mild"  # five seeds, and LoRA beside it; the others three
WINDOWS, ELSEWHERE = 48, 12  # of WikiText's test split and of Wikipedia articles, spread evenly
CALIBRATION = 16  # windows of the train split, spread evenly, behind the moments of the inputs
ADAPTER, BLOCKS = BUDGETS[-1].adapter, BUDGETS[-1].blocks  # 25,920 parameters, a third of them on compressed down_proj
LORA = {"r": 1, "lora_alpha": 1, "target_modules": ["v_proj"]}  # 23,040 parameters
TRAINING = TrainConfig(steps=60, warmup=10)
RATES = {"original": {"cua": 0.01, "lora": 0.02}, CLAIMED: {"cua": 0.01, "lora": 0.02}}  # see compression_rates
BOOTSTRAP = 10_000  # draws of windows


@dataclass
class Comparison(Bench):
    """A bench whose runs also say how a model does on text of another kind, and how far it is from the original there.

    Attributes:
        original: final hidden states of the original model on ``tokens["elsewhere"]``.
    """

    original: Tensor = field(default_factory=lambda: torch.empty(0))

    @torch.no_grad()
    def measure(self, name: str, layer: int) -> dict[str, Any]:
        split, losses, divergence = SplitModel(self.model, 0), [], 0.0
        for ids, teacher in zip(self.tokens["elsewhere"].split(1), self.original.split(1), strict=True):
            hidden = split.above(split.below(ids))
            losses.append(next_token_nll(hidden, split.head, ids).item())
            divergence += distillation_kl(hidden, split.head, teacher, 1.0).item()
        elsewhere = Perplexity(tuple(losses), self.tokens["elsewhere"].shape[1], bos=False)
        other = run_of(elsewhere) | {"kl": divergence / elsewhere.tokens}
        return super().measure(name, layer) | {"elsewhere": other}


@contextmanager
def compressed(bench: Bench, compression: Compression | None) -> Iterator[float]:
    """Inside this context the bench's model is compressed; gives the share of bits that is left."""
    if compression is None:
        yield 1.0
        return
    tokens = bench.tokens["train"]
    spread = tokens[evenly(len(tokens), CALIBRATION)]
    moments = input_moments(bench.model, spread, compression)
    weights = {name: bench.model.get_submodule(name).weight for name in moments}
    before = {name: weight.clone() for name, weight in weights.items()}
    try:
        yield compress(bench.model, compression, moments, progress=True)
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])


def fit(bench: Bench, kind: str, training: TrainConfig, name: str) -> dict[str, Any]:
    """Train a "cua" or a "lora" adapter on the bench's model as it stands."""
    if kind == "lora":
        return bench.fit_peft(LoraConfig(**LORA), training, name, 0)
    groups = chosen_groups(bench.gradients(ADAPTER.target_modules, ADAPTER.side), ADAPTER, BLOCKS)
    return bench.fit(ADAPTER, training, None, name, groups, 0)


def seeds_of(model: str, kind: str) -> tuple[int, ...]:
    """Seeds of one model's adapters; LoRA stands beside the claimed compression and the original alone."""
    if model in (CLAIMED, "original"):
        return (0, 1, 2, 3, 4)
    return (0, 1, 2) if kind == "cua" else ()


def work() -> dict[str, dict[str, tuple[str, int]]]:
    """Of every model the runs, and kind and seed of their adapters: the model itself, then with adapters."""
    return {
        model: {model: ("", 0)}
        | {f"{model}/{kind}/seed{seed}": (kind, seed) for kind in ("cua", "lora") for seed in seeds_of(model, kind)}
        for model in ("original", *COMPRESSIONS)
    }


def run() -> dict[str, Any]:
    """Every model with every adapter, on the same windows of the test split."""
    full = Bench.prepare(test=True)
    pick = evenly(len(full.tokens["test"]), WINDOWS)
    corpus = load_corpus("wikipedia", "test")
    other = windows(load_model()[1], corpus.text, TEST_WINDOW)
    spread = evenly(len(other), ELSEWHERE)
    tokens = {"train": full.tokens["train"], "test": full.tokens["test"][pick], "elsewhere": other[spread]}
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "compressions": {name: asdict(c) for name, c in COMPRESSIONS.items()},
                "windows": pick.tolist(),
                "windows_elsewhere": spread.tolist(),
                "calibration_windows": CALIBRATION,
                "adapter": used(ADAPTER),
                "blocks": dict(BLOCKS),
                "lora": LORA,
                "rates": RATES,
                "training": schedule(TRAINING),
            },
            "seeds": [0, 1, 2, 3, 4],
            "model": identity(full.model),
            "data": full.data | {"elsewhere": corpus.provenance() | {"windows": len(other), "window": TEST_WINDOW}},
        }
    )
    original = teacher_states(full.model, tokens["elsewhere"], dtype=torch.float32, progress=True)

    def make(model: str, bench: Comparison, share: float, key: str) -> dict[str, Any]:
        kind, seed = everything[model][key]
        if kind == "":
            return bench.measure("test", 0) | {"share_of_bits": share}
        rate = RATES.get(model, RATES[CLAIMED])[kind]
        return fit(bench, kind, replace(TRAINING, learning_rate=rate, seed=seed), "test")

    everything = work()
    for model, runs in everything.items():
        if not record.has(*runs):
            with compressed(full, COMPRESSIONS.get(model)) as share:
                bench = Comparison(full.model, tokens, full.data, original=original)
                record.fill(runs, partial(make, model, bench, share))
    if not record.has(*(key for runs in everything.values() for key in runs)):
        return record.result
    return record.finish(headline(record.result["runs"]))


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each compression costs, and what is won back: over seeds, and over windows of text for their mean."""
    original = runs["original"]
    numbers = {"original_perplexity": point(original["perplexity"], "perplexity")}
    for model in ("original", *COMPRESSIONS):
        mine = runs[model]
        if model != "original":
            numbers[f"{model}_cost"] = point(percent_change(mine, original), "%")
            numbers[f"{model}_share_of_bits"] = point(mine["share_of_bits"], "1")
            numbers[f"{model}_kl_elsewhere"] = point(mine["elsewhere"]["kl"], "nats")
            cost = percent_change(mine["elsewhere"], original["elsewhere"])
            numbers[f"{model}_cost_elsewhere"] = point(cost, "%")
        for kind in ("cua", "lora"):
            adapted = [runs[f"{model}/{kind}/seed{seed}"] for seed in seeds_of(model, kind)]
            if not adapted:
                continue
            label = f"{model}_{kind}"
            numbers[f"{label}_change"] = mean_interval([percent_change(run, mine) for run in adapted], "%")
            elsewhere = [run["elsewhere"] for run in adapted]
            changes = [percent_change(run, original["elsewhere"]) for run in elsewhere]
            numbers[f"{label}_change_elsewhere"] = mean_interval(changes, "%")
            numbers[f"{label}_kl_elsewhere"] = mean_interval([run["kl"] for run in elsewhere], "nats")
            if model == "original":
                continue
            controls = [runs[f"original/{kind}/seed{seed}"] for seed in seeds_of(model, kind)]
            each = np.array([shares(original, mine, [a], [c]) for a, c in zip(adapted, controls, strict=True)])
            drawn = bootstrap(original, mine, adapted, controls)
            for i, name in enumerate(("recovered", "net")):
                numbers[f"{label}_{name}"] = mean_interval(each[:, i], "%")
                low, high = np.percentile(drawn[:, i], [2.5, 97.5])
                value = shares(original, mine, adapted, controls)[i]
                numbers[f"{label}_{name}_over_text"] = {"value": value, "low": low, "high": high, "unit": "%"}
    return numbers


def shares(original: Run, compressed: Run, adapted: list[Run], controls: list[Run]) -> tuple[float, float]:
    """Recovered and net share in per cent; of several seeds the losses are averaged."""
    return tuple(float(share) for share in _shares(*_losses(original, compressed, adapted, controls)))


def bootstrap(original: Run, compressed: Run, adapted: list[Run], controls: list[Run]) -> NDArray[np.float64]:
    """The shares on windows drawn with replacement, ``(draws, 2)``."""
    losses = np.stack(_losses(original, compressed, adapted, controls))  # (4, windows)
    draw = np.random.default_rng(0).integers(losses.shape[1], size=(BOOTSTRAP, losses.shape[1]))
    return np.stack(_shares(*losses[:, draw]), -1)


def _losses(original: Run, compressed: Run, adapted: list[Run], controls: list[Run]) -> list[NDArray[np.float64]]:
    """Mean loss a token of each window: of the original, the compressed, the adapted and the adapted original."""
    a_token = len(original["nll"]) / original["tokens"]
    return [
        np.mean([run["nll"] for run in same], 0) * a_token for same in ([original], [compressed], adapted, controls)
    ]


def _shares(*losses: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, c, a, control = (loss.mean(-1) for loss in losses)
    recovered = (np.exp(c) - np.exp(a)) / (np.exp(c) - np.exp(p))
    return 100 * recovered, 100 * (1 - (a - control) / (c - p))
