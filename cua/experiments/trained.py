"""Adapters that experiments trained, on a model for a while."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

import cua
from cua.llm.baselines import PeftAdapter

WIKITEXT = {f"cua_{size}": f"budget_{size}/exact-seed" for size in ("1k", "6k", "25k")}
WIKITEXT |= {f"lora_{size}": f"baselines/lora/{size}/seed" for size in ("1k", "6k", "25k")}


def trained_on_wikitext(seeds: Iterable[int]) -> dict[str, str]:
    """Folders of our adapters and of low-rank ones, by "MODEL/seedN" with the models of :data:`WIKITEXT`."""
    return {f"{model}/seed{seed}": f"{path}{seed}" for model, path in WIKITEXT.items() for seed in seeds}


@contextmanager
def attached(model: LlamaForCausalLM, folder: Path, draw: int | None = None) -> Iterator[cua.Adapter | PeftAdapter]:
    """Inside this context a saved adapter, ours or one of PEFT, is on the model.

    Args:
        model: any Llama-family model without an adapter.
        folder: of the adapter.
        draw: of our adapters only: turn every block by another K of the same Frobenius norm, in a direction drawn at
            random with this seed.  What is left then is where the blocks sit and how far they turn, not what they
            learned.
    """
    adapter = (cua.load if (folder / "adapter.json").is_file() else PeftAdapter.load)(model, folder)
    try:
        if draw is not None:
            _scramble(adapter, torch.Generator().manual_seed(draw))
        yield adapter
    finally:
        adapter.detach()


@torch.no_grad()
def _scramble(adapter: cua.Adapter, generator: torch.Generator) -> None:
    for module in adapter.modules.values():
        direction = torch.randn(module.theta.shape, generator=generator)
        sizes = module.theta.norm(dim=-1, keepdim=True)  # |K|_F / sqrt(2)
        module.theta.copy_(torch.nn.functional.normalize(direction, dim=-1) * sizes)
