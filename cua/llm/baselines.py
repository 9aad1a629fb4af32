"""Adapters of the PEFT library, trained and measured by the same loop as ours."""

from pathlib import Path
from typing import Self

import torch
from peft import PeftConfig, PeftModel, VeraConfig, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from cua.config import layer_number


class PeftAdapter:
    """A PEFT adapter on a model, with what :func:`cua.llm.train.train` needs of an adapter.

    Args:
        model: any Llama-family model; its layers are wrapped in place, its own weights frozen.
        config: of PEFT, for example ``LoraConfig(r=1, target_modules=["v_proj"])``.
        seed: of the adapter's initial values, and of VeRA's frozen matrices, where they are random.
    """

    def __init__(self, model: LlamaForCausalLM, config: PeftConfig, seed: int = 0) -> None:
        if isinstance(config, VeraConfig):  # which would draw with this key whatever the seed
            config.projection_prng_key = seed
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._wrap(model, get_peft_model(model, config))

    def _wrap(self, model: LlamaForCausalLM, wrapped: PeftModel) -> None:
        self.wrapped = wrapped
        self.modules = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return list(self.modules.values())

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def first_layer(self) -> int:
        """The lowest decoder layer with a trainable parameter."""
        return min((layer_number(name) or 0) for name in self.modules)

    def save(self, folder: Path) -> None:
        """Write the adapter as PEFT does: safetensors and JSON."""
        self.wrapped.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # a form for the hub, with nothing filled in

    @classmethod
    def load(cls, model: LlamaForCausalLM, folder: Path) -> Self:
        """Put a saved adapter on a model."""
        adapter = cls.__new__(cls)
        adapter._wrap(model, PeftModel.from_pretrained(model, folder, is_trainable=True))
        return adapter

    def detach(self) -> nn.Module:
        """Take the adapter off and return the base model, its weights untouched."""
        return self.wrapped.unload()
