"""Speed, always as a ratio to the alternative, run in turn in the same process: the adapter beside PEFT's OFT, and
training from a frozen prefix beside the plain loop."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peft import OFTConfig, inject_adapter_in_model
from scipy import stats
from torch import nn
from torch.profiler import ProfilerActivity, profile

import cua
from cua import CUAConfig
from cua.experiments.record import Record, point
from cua.llm.data import load_corpus, windows
from cua.llm.models import identity, load_model
from cua.llm.prefix import SplitModel

ADAPTER, PREFIX = "adapter_speed", "prefix_speed"
ADAPTER_QUESTION = (
    "How long do 4x4 blocks on a 4096-to-1024 projection take beside PEFT's OFT, and at what peak memory?"
)
PREFIX_QUESTION = (
    "How much faster is a training step that starts at the adapted layer than one through the whole model?"
)
TOKENS, REPEATS = 512, 60
LAYERS, STEPS, LENGTHS = (15, 27), 12, (512, 1024)


def run_adapter() -> dict[str, Any]:
    """Forward, forward + backward and peak memory of both adapters on the v_proj of Llama 3.1 8B, float32."""
    torch.manual_seed(0)
    base = nn.Linear(4096, 1024, bias=False).requires_grad_(False)
    ours, peft = nn.ModuleDict({"v_proj": base}), nn.ModuleDict({"v_proj": base})
    cua.attach(ours, CUAConfig(block_size=4))
    oft = OFTConfig(target_modules=["v_proj"], r=0, oft_block_size=4, use_cayley_neumann=False)
    inject_adapter_in_model(oft, peft)
    theta = torch.randn(1024, 6) * 0.3
    with torch.no_grad():
        ours["v_proj"].theta.copy_(theta)
        peft["v_proj"].oft_R["default"].weight.copy_(theta / -2)
    x = torch.randn(1, TOKENS, 4096, requires_grad=True)  # as inside a model: the input needs a gradient too
    difference = (ours["v_proj"](x) - peft["v_proj"](x)).abs().max().item()
    record = Record(
        {
            "name": ADAPTER,
            "question": ADAPTER_QUESTION,
            "config": {"tokens": TOKENS, "repeats": REPEATS, "layer": [4096, 1024], "block_size": 4},
            "seeds": [0],
            "model": {"name": "one nn.Linear, random", "parameters": 4096 * 1024, "dtype": "float32"},
            "data": {},
        }
    )
    layers = {"cua": ours["v_proj"], "peft": peft["v_proj"], "linear": base}

    def forward(name: str) -> None:
        with torch.no_grad():
            layers[name](x)

    def both(name: str) -> None:
        layers[name](x).sum().backward()

    started = time.perf_counter()
    timings = {
        "forward": in_turn({name: lambda name=name: forward(name) for name in layers}, REPEATS),
        "forward_backward": in_turn({name: lambda name=name: both(name) for name in layers}, REPEATS),
    }
    memory = {name: peak_bytes(lambda name=name: both(name)) for name in ("cua", "peft")}
    record.add(
        "timings",
        {"seconds": timings, "peak_bytes": memory, "largest_output_difference": difference},
        time.perf_counter() - started,
    )
    return record.finish(
        {
            "forward": ratio(timings["forward"], "cua", "peft", "x PEFT"),
            "forward_backward": ratio(timings["forward_backward"], "cua", "peft", "x PEFT"),
            "peak_memory": point(memory["cua"] / memory["peft"], "x PEFT"),
            "forward_over_bare_layer": ratio(timings["forward"], "cua", "linear", "x bare layer"),
        }
    )


def run_prefix() -> dict[str, Any]:
    """A training step at several layers and window lengths: plain loop (transformers' own loss) against ours."""
    model, tokenizer = load_model()
    corpus = load_corpus("wikipedia", "train")
    record = Record(
        {
            "name": PREFIX,
            "question": PREFIX_QUESTION,
            "config": {"layers": LAYERS, "lengths": LENGTHS, "steps": STEPS, "block_size": 4},
            "seeds": [0],
            "model": identity(model),
            "data": {"train": corpus.provenance()},
        }
    )
    headline = {}
    for length in LENGTHS:
        ids = windows(tokenizer, corpus.text, length)[:1]
        for layer in LAYERS:
            adapter = cua.attach(model, CUAConfig(layers=(layer,)))
            (theta,) = adapter.parameters()
            split = SplitModel(model, layer)
            hidden = split.prefix(ids)
            losses: dict[str, float] = {}

            def plain(ids=ids, theta=theta, losses=losses) -> None:
                theta.grad = None
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
                losses["plain"] = loss.item()

            def frozen(ids=ids, theta=theta, losses=losses, split=split, hidden=hidden) -> None:
                theta.grad = None
                loss = split.nll(hidden, ids) / (ids.shape[1] - 1)
                loss.backward()
                losses["frozen_prefix"] = loss.item()

            started = time.perf_counter()
            seconds = in_turn({"plain": plain, "frozen_prefix": frozen}, STEPS)
            key = f"layer{layer}_{length}_tokens"
            record.add(key, {"seconds": seconds, "loss": losses}, time.perf_counter() - started)
            headline[key] = ratio(seconds, "plain", "frozen_prefix", "x faster")
            adapter.detach()
    return record.finish(headline)


def in_turn(calls: dict[str, Callable[[], None]], repeats: int, warm_s: float = 0.0) -> dict[str, list[float]]:
    """Seconds of each call, A B C A B C ..., after one round that is not counted.

    With ``warm_s``, a call is repeated for so many seconds each time before it is timed: what ran before it leaves
    caches and memory in a state that costs a call of milliseconds half its speed.  A call that takes longer than that
    anyway is not repeated.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    took = dict.fromkeys(calls, 0.0)
    for i in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            while took[name] < warm_s and time.perf_counter() - started < warm_s:
                call()
            started = time.perf_counter()
            call()
            took[name] = time.perf_counter() - started
            if i:
                seconds[name].append(round(took[name], 6))
    return seconds


def ratio(seconds: dict[str, list[float]], numerator: str, denominator: str, unit: str) -> dict[str, Any]:
    """Median of the pairwise ratios with its 95 % bootstrap interval; no interval for fewer than ten."""
    ratios = np.array(seconds[numerator]) / np.array(seconds[denominator])
    low = high = None
    if len(ratios) >= 10:
        interval = stats.bootstrap((ratios,), np.median, method="percentile", rng=0).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return {"value": float(np.median(ratios)), "low": low, "high": high, "unit": unit}


def peak_bytes(call: Callable[[], None]) -> int:
    """Largest number of bytes that a call holds allocated at once, from the profiler's allocation events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    current = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


def saved_bytes(call: Callable[[], None], model: nn.Module) -> int:
    """Bytes that a forward pass keeps for its backward pass, weights apart.  Works on the meta device, too."""
    seen = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            kept[storage._cdata] = storage  # held, so that no other one gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storage.nbytes() for storage in kept.values())
