"""Seconds of the paper's layer on a CPU, and on a GPU where there is one: true dimensions, random weights.

One decoder layer of Llama 3.1 8B (hidden width 4,096); 1,024 blocks of 4x4 on the input of its v_proj, which are
6,144 parameters, or LoRA of rank 1 there, which are 5,120.  What the weights are makes no difference to the time.  The
run of a GPU is added to the same record by the same command; without one there is none.
"""

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoConfig, LlamaForCausalLM

from cua import CUAConfig, attach
from cua.experiments.protocol import mean_interval
from cua.experiments.record import Record
from cua.experiments.speed import in_turn, ratio
from cua.llm.architectures import ARCHITECTURES
from cua.llm.baselines import PeftAdapter

NAME = "layer_cost"
QUESTION = "How long do the blocks of the paper's layer take on a CPU and on a GPU, beside LoRA and the layer itself?"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
LAYER = ARCHITECTURES[MODEL] | {"num_hidden_layers": 1, "vocab_size": 256}  # without the embedding, which is not run
TOKENS = {"cpu": (1, 512), "cuda": (1, 512, 16384)}
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
REPEATS = 30


def layer(device: str) -> LlamaForCausalLM:
    """One decoder layer with random weights."""
    config = AutoConfig.for_model(**LAYER)
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config).to(DTYPES.get(device)).eval().requires_grad_(False)


def run() -> dict[str, Any]:
    """Time what is not recorded yet on the devices that there are."""
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {"layer": LAYER, "tokens": TOKENS, "repeats": REPEATS, "block_size": 4, "lora_rank": 1},
            "seeds": [0],
            "model": {
                "name": f"one layer of {MODEL}, random weights",
                "parameters": 218_112_000,
                "dtype": "float32; bfloat16 on a GPU",
            },
            "data": {},
        }
    )
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    keys = [f"{device}/{tokens}" for device in devices for tokens in TOKENS[device]]

    def make(key: str) -> dict[str, Any]:
        device, _, tokens = key.partition("/")
        return measure(device, int(tokens))

    if not record.fill(keys, make):
        return record.result
    return record.finish(headline(record.result["runs"]))


def measure(device: str, tokens: int) -> dict[str, Any]:
    """Seconds of passes and training steps of one layer, and of what each adapter adds alone."""
    bare, ours, lora = (layer(device) for _ in range(3))
    adapter = attach(ours, CUAConfig(target_modules=("v_proj",), block_size=4))
    PeftAdapter(lora, LoraConfig(r=1, lora_alpha=1, target_modules=["v_proj"]))
    (blocks,) = adapter.modules.values()
    x = torch.randn(1, tokens, LAYER["hidden_size"], device=device, dtype=DTYPES[device])
    inputs, outputs = blocks.base_layer.in_features, blocks.base_layer.out_features
    down, up = torch.randn(inputs, 1, device=device).to(x), torch.randn(1, outputs, device=device).to(x)
    at_work = {name: model.model for name, model in (("bare", bare), ("blocks", ours), ("lora", lora))}
    alone = {"blocks": lambda: blocks._rotate(x), "lora": lambda: x @ down @ up}

    def forward(call: Callable[[], Any]) -> Callable[[], None]:
        def timed() -> None:
            with torch.no_grad():
                call()
            _wait(device)

        return timed

    def step(model: torch.nn.Module) -> Callable[[], None]:
        def timed() -> None:
            hidden = x.detach().requires_grad_()  # as inside a model: layers below want a gradient, too
            model(inputs_embeds=hidden).last_hidden_state.sum().backward()
            _wait(device)

        return timed

    passes = {name: forward(lambda model=model: model(inputs_embeds=x)) for name, model in at_work.items()}
    return {
        "name": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "dtype": str(DTYPES[device]).removeprefix("torch."),
        "forward_s": in_turn(passes, REPEATS),
        "alone_s": in_turn({name: forward(call) for name, call in alone.items()}, REPEATS),
        "step_s": in_turn({name: step(model) for name, model in at_work.items()}, REPEATS),
    }


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Microseconds a token, and ratios to the bare layer."""
    numbers = {}
    for key, timed in runs.items():
        device, _, tokens = key.partition("/")
        label = f"{device}_{tokens}"
        for kind in ("forward_s", "alone_s", "step_s"):
            for name, seconds in timed[kind].items():
                micro = [1e6 * s / int(tokens) for s in seconds]
                numbers[f"{label}_{kind.removesuffix('_s')}_{name}"] = mean_interval(micro, "us/token")
        for name in ("blocks", "lora"):
            numbers[f"{label}_{name}_over_bare"] = ratio(timed["forward_s"], name, "bare", "x bare layer")
    return numbers
