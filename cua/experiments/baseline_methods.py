"""Methods of PEFT as the baselines use them, and the slopes that tell where each is worth its parameters.

BOFT is left out: without its CUDA extension PEFT has it with a single factor, which is OFT with trained scales.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from peft import IA3Config, LoraConfig, OFTConfig, PeftConfig, VeraConfig
from torch import Tensor
from transformers import LlamaForCausalLM

from cua.llm.baselines import PeftAdapter
from cua.llm.placement import backward

DIRECTIONS = 16  # that the slopes of low-rank matrices are means over
DIRECTION_NORM = 3**-0.5  # of A in LoRA as PEFT draws it: uniform up to 1 / sqrt(inputs)


def _ia3(modules: list[str]) -> IA3Config:
    return IA3Config(target_modules=modules, feedforward_modules=[m for m in modules if m.endswith("down_proj")])


METHODS: dict[str, Callable[[list[str]], PeftConfig]] = {
    "lora": lambda modules: LoraConfig(r=1, lora_alpha=1, target_modules=modules),
    "dora": lambda modules: LoraConfig(r=1, lora_alpha=1, target_modules=modules, use_dora=True),
    "oft": lambda modules: OFTConfig(r=0, oft_block_size=4, target_modules=modules, use_cayley_neumann=False),
    "ia3": _ia3,
    "vera": lambda modules: VeraConfig(r=64, target_modules=modules, save_projection=False),
    "scales": _ia3,  # a control: of which only the steepest are trained
}


def steepest(
    model: LlamaForCausalLM, windows: Tensor, method: str, places: Iterable[str], directions: int = DIRECTIONS
) -> dict[str, tuple[float, int]]:
    """Sum of the absolute slopes, and number of the parameters, that a method has on each module, by its name.

    Slopes are those of the mean loss over ``windows``, at the method's initial values with seed 0; of low-rank matrices
    the mean over ``directions``, which is had by as many ranks at once.
    """
    modules = [name for name, _ in model.named_modules() if name.endswith(tuple(places))]
    config = METHODS[method](modules)
    if isinstance(config, LoraConfig):
        config.r = config.lora_alpha = directions
    adapter = PeftAdapter(model, config)
    try:
        backward(model, windows)
        found = dict.fromkeys(modules, (0.0, 0))
        for name, parameter in adapter.modules.items():
            module = next(m for m in modules if f".{m}." in f".{name}")
            slope, size = found[module]
            slopes = 0.0 if parameter.grad is None else parameter.grad.abs().sum().item()
            ranks = directions if ".lora_A." in name or ".lora_B." in name else 1
            found[module] = slope + slopes / ranks, size + parameter.numel() // ranks
        return found
    finally:
        adapter.detach()


def steepest_along_gradient(gradients: dict[str, Tensor]) -> dict[str, tuple[float, int]]:
    """The same for LoRA with A along the gradient, from dL/dW of each module: all its slopes are those of B."""
    return {
        name: (DIRECTION_NORM * (gradient @ _direction(gradient)).abs().sum().item(), sum(gradient.shape))
        for name, gradient in gradients.items()
    }


def _direction(gradient: Tensor) -> Tensor:
    return torch.linalg.svd(gradient, full_matrices=False).Vh[0]


def settings(config: PeftConfig) -> dict[str, Any]:
    """What a method is set to, without what is the same for all and where it goes."""
    keys = ("r", "lora_alpha", "use_dora", "oft_block_size", "use_cayley_neumann", "d_initial")
    return {"peft_type": str(config.peft_type.value)} | {k: getattr(config, k) for k in keys if hasattr(config, k)}


@torch.no_grad()
def start_along(gradients: dict[str, Tensor], adapter: PeftAdapter) -> None:
    """Turn A of every low-rank pair along the gradient dL/dW of its module."""
    for name, parameter in adapter.modules.items():
        module, is_a, _ = name.partition(".lora_A.")
        if is_a:
            parameter.copy_(DIRECTION_NORM * _direction(gradients[module]))


@torch.no_grad()
def scale_slopes(model: LlamaForCausalLM, gradients: dict[str, Tensor], adapter: PeftAdapter) -> dict[str, Tensor]:
    """Of all scales of IA³ at one, from dL/dW: that of row i has the slope sum_j W_ij dL/dW_ij, and so for columns."""
    slopes = {}
    for name, parameter in adapter.modules.items():
        module = name.partition(".ia3_l")[0]
        layer = model.get_submodule(module)
        product = gradients[module] * layer.get_base_layer().weight
        slopes[name] = product.sum(0 if layer.is_feedforward else 1).view_as(parameter)
    return slopes


def steepest_entries(slopes: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Masks of the entries with the largest absolute slopes of all."""
    sizes = torch.cat([slope.abs().flatten() for slope in slopes.values()])
    chosen = torch.zeros_like(sizes, dtype=torch.bool)
    chosen[sizes.topk(count).indices] = True
    parts = chosen.split([slope.numel() for slope in slopes.values()])
    return {name: part.view_as(slopes[name]) for name, part in zip(slopes, parts, strict=True)}
