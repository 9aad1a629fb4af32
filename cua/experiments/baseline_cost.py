"""What each method costs where it was chosen at about 25,000 parameters: time of a pass and of a training step, memory.

Always as a ratio, run in turn in the same process: a forward pass beside the bare model's, a training step (forward,
backward, no optimiser) beside that of our blocks.  Adapters are not merged; merged ones of every linear method cost
nothing.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import cua
from cua.experiments.baseline_methods import METHODS
from cua.experiments.baseline_selection import NAME as SELECTION
from cua.experiments.baseline_selection import best_places
from cua.experiments.record import ADAPTERS, Record, adapter_digests, load_complete, point
from cua.experiments.speed import in_turn, peak_bytes, ratio
from cua.llm.baselines import PeftAdapter
from cua.llm.data import load_corpus, windows
from cua.llm.models import identity, load_model
from cua.llm.placement import backward

NAME = "baseline_cost"
QUESTION = "What do our blocks and the methods of PEFT cost in time and memory, at about 25,000 parameters?"
OURS, BUDGET = "budget_25k/exact-seed0", "25k"
TOKENS, REPEATS = 512, 12


def forward(model: LlamaForCausalLM, ids: Tensor) -> None:
    """Hidden states only: the head is the same for all."""
    with torch.no_grad():
        model.model(ids)


def step(model: LlamaForCausalLM, ids: Tensor) -> None:
    """Loss and gradients of one window."""
    backward(model, ids)
    for parameter in model.parameters():
        parameter.grad = None


def run() -> dict[str, Any]:
    """Every method in turn with the bare model and with our blocks.

    Raises:
        FileNotFoundError: if the selection or our adapter is missing, naming the command that records it.
        ValueError: if the selection is not complete.
    """
    chosen = load_complete(SELECTION)["runs"]
    places = {label: cell for label, cell in best_places(chosen).items() if label.endswith(f"/{BUDGET}")}
    digests = adapter_digests([OURS])
    plain, tokenizer = load_model()
    corpus = load_corpus("wikipedia", "test")
    ids = windows(tokenizer, corpus.text, TOKENS)[:1]
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {"tokens": TOKENS, "repeats": REPEATS, "adapter_sha256": digests, "places": places},
            "seeds": [0],
            "model": identity(plain),
            "data": {"test": corpus.provenance()},
        }
    )
    ours, other = copy.deepcopy(plain), copy.deepcopy(plain)
    cua.load(ours, ADAPTERS / OURS)

    def make(key: str) -> dict[str, Any]:
        adapter = (
            None if key == "cua" else PeftAdapter(other, METHODS[key](chosen[places[f"{key}/{BUDGET}"]]["modules"]))
        )
        model = ours if adapter is None else other
        passes = {"adapted": lambda: forward(model, ids), "plain": lambda: forward(plain, ids)}
        steps = {"adapted": lambda: step(model, ids), "cua": lambda: step(ours, ids)}
        run = {
            "forward_s": in_turn(passes, REPEATS),
            "step_s": in_turn(steps, REPEATS),
            "peak_bytes": peak_bytes(steps["adapted"]),
        }
        if adapter is not None:
            adapter.detach()
        return run

    if not record.fill(["cua", *(label.partition("/")[0] for label in places)], make):
        return record.result
    return record.finish(headline(record.result["runs"]))


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Ratios of time to the bare model and to our blocks, and of memory to our blocks."""
    numbers = {}
    for name, run in runs.items():
        numbers[f"{name}_forward"] = ratio(run["forward_s"], "adapted", "plain", "x bare model")
        numbers[f"{name}_step"] = ratio(run["step_s"], "adapted", "cua", "x our blocks")
        numbers[f"{name}_memory"] = point(run["peak_bytes"] / runs["cua"]["peak_bytes"], "x our blocks")
    return numbers
