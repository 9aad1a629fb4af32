"""Adapters that experiments trained, on a model for a while."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import cua
from cua.llm.baselines import PeftAdapter
from cua.llm.loss import distillation_kl
from cua.llm.prefix import SplitModel

WIKITEXT = {f"cua_{size}": f"budget_{size}/exact-seed" for size in ("1k", "6k", "25k")}
WIKITEXT |= {f"lora_{size}": f"baselines/lora/{size}/seed" for size in ("1k", "6k", "25k")}

PATTERN = "cua_6k/seed0"  # whose blocks are turned in random directions
MATCHED_ON, MATCHED_WINDOWS = "wikipedia in plain", 4  # text of :func:`matched_scale`, and how many windows of it


def trained_on_wikitext(seeds: Iterable[int]) -> dict[str, str]:
    """Folders of our adapters and of low-rank ones, by "MODEL/seedN" with the models of :data:`WIKITEXT`."""
    return {f"{model}/seed{seed}": f"{path}{seed}" for model, path in WIKITEXT.items() for seed in seeds}


@contextmanager
def attached(
    model: LlamaForCausalLM, folder: Path, draw: int | None = None, scale: float = 1.0
) -> Iterator[cua.Adapter | PeftAdapter]:
    """Inside this context a saved adapter, ours or one of PEFT, is on the model.

    Args:
        model: any Llama-family model without an adapter.
        folder: of the adapter.
        draw: of our adapters only: turn every block by another K, in a direction drawn at random with this seed.  What
            is left then is where the blocks sit and how far they turn, not what they learned.
        scale: Frobenius norm of the drawn K, as a multiple of the trained one's.
    """
    adapter = (cua.load if (folder / "adapter.json").is_file() else PeftAdapter.load)(model, folder)
    try:
        if draw is not None:
            _scramble(adapter, torch.Generator().manual_seed(draw), scale)
        yield adapter
    finally:
        adapter.detach()


@torch.no_grad()
def _scramble(adapter: cua.Adapter, generator: torch.Generator, scale: float) -> None:
    for module in adapter.modules.values():
        direction = torch.randn(module.theta.shape, generator=generator)
        sizes = scale * module.theta.norm(dim=-1, keepdim=True)  # |K|_F / sqrt(2)
        module.theta.copy_(torch.nn.functional.normalize(direction, dim=-1) * sizes)


def last_states(model: LlamaForCausalLM, windows: Tensor) -> list[Tensor]:
    """Hidden states after the last layer, before the final norm, which would hide their length: ``(1, T, width)``."""
    split = SplitModel(model, len(model.model.layers))
    return [split.below(ids) for ids in windows.split(1)]


@torch.no_grad()
def divergence(model: LlamaForCausalLM, before: list[Tensor], windows: Tensor) -> float:
    """Mean KL divergence of the next-token distribution from the one that ``before`` leads to, nats a token."""
    norm, head = model.model.norm, model.lm_head
    pairs = zip(last_states(model, windows), before, strict=True)
    total = sum(distillation_kl(norm(h), head, norm(b), 1.0).item() for h, b in pairs)
    return total / (windows.shape[0] * (windows.shape[1] - 1))


def matched_scale(model: LlamaForCausalLM, folder: Path, draw: int, windows: Tensor, steps: int = 10) -> float:
    """``scale`` at which blocks in random directions change the model's predictions as much as the trained ones do.

    Blocks sit where the loss is most sensitive, and turned as far in other directions they may do far more or less
    than training did.  This makes their :func:`divergence` on ``windows`` the same to 3 %; it grows about with the
    square of the scale.

    Raises:
        ValueError: if so many steps do not get there.
    """
    before, scale = last_states(model, windows), 1.0
    with attached(model, folder):
        wanted = divergence(model, before, windows)
    for _ in range(steps):
        with attached(model, folder, draw, scale):
            found = divergence(model, before, windows)
        if abs(found / wanted - 1) < 0.03:
            return scale
        scale *= math.sqrt(wanted / found)
    raise ValueError(f"draw {draw} of {folder} diverges by {found:.3g} nats where {wanted:.3g} were wanted")
