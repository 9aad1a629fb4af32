"""Adapters of the PEFT library, trained and measured by the same loop as ours."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import torch
from peft import PeftConfig, PeftModel, VeraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from cua.config import layer_number


@contextmanager
def _quietly() -> Iterator[None]:
    """PEFT asks a model for ``is_gradient_checkpointing``, which transformers 5 wants called by another name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


class PeftAdapter:
    """A PEFT adapter on a model, with what :func:`cua.llm.train.train` needs of an adapter.

    Args:
        model: any Llama-family model; its layers are wrapped in place, its own weights frozen.
        config: of PEFT, for example ``LoraConfig(r=1, target_modules=["v_proj"])``.
        seed: of the adapter's initial values, and of VeRA's frozen matrices, where they are random.

    ``modules`` are its parameters by their names on the model, ``n_parameters`` is how many numbers are trained.
    """

    def __init__(self, model: LlamaForCausalLM, config: PeftConfig, seed: int = 0) -> None:
        if isinstance(config, VeraConfig):  # which would draw with this key whatever the seed
            config.projection_prng_key = seed
        with torch.random.fork_rng(), _quietly():
            torch.manual_seed(seed)
            self._wrap(model, get_peft_model(model, config))

    def _wrap(self, model: LlamaForCausalLM, wrapped: PeftModel) -> None:
        self.wrapped = wrapped
        self.modules = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.n_parameters = sum(parameter.numel() for parameter in self.modules.values())

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return list(self.modules.values())

    def keep(self, masks: dict[str, Tensor]) -> None:
        """Train only some entries of each parameter; the others keep their values and are not counted.

        Args:
            masks: by name as in ``modules``, of the parameters' shapes, True for the entries to train.

        Raises:
            ValueError: if the names or shapes are not those of ``modules``.
        """
        shapes = {name: parameter.shape for name, parameter in self.modules.items()}
        if shapes != {name: mask.shape for name, mask in masks.items()}:
            raise ValueError("masks need the names and shapes of this adapter's modules, one for each")
        for name, parameter in self.modules.items():  # Adam leaves an entry alone whose gradient is always zero
            parameter.register_hook(masks[name].to(parameter.device, parameter.dtype).mul)
        self.n_parameters = sum(int(mask.sum()) for mask in masks.values())

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
        with _quietly():
            adapter._wrap(model, PeftModel.from_pretrained(model, folder, is_trainable=True))
        return adapter

    def detach(self) -> nn.Module:
        """Take the adapter off and return the base model, its weights untouched."""
        return self.wrapped.unload()
