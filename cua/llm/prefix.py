"""Frozen-prefix computation: split a model below its first adapted layer.

With the lowest adapter in layer l, the hidden states that enter layer l are the same at every training step and for
every adapter.  They are computed once; training, selection and evaluation start from there.
"""

import copy

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM

from cua.llm.loss import next_token_nll


class SplitModel:
    """Views of one model, below and from decoder layer ``layer``; the weights are shared, nothing is copied.

    Args:
        model: a ``LlamaForCausalLM``.
        layer: l, 0 to the number of layers; 0 keeps only the embedding below.  Kept as an attribute.

    Raises:
        ValueError: if there is no such layer.
    """

    def __init__(self, model: LlamaForCausalLM, layer: int) -> None:
        layers = model.model.layers
        if not 0 <= layer <= len(layers):
            raise ValueError(f"layer {layer}: this model has {len(layers)} decoder layers, so 0 to {len(layers)}")
        self.layer, self.head = layer, model.lm_head
        self._below = _view(model.model, layers=layers[:layer], norm=nn.Identity())
        self._above = _view(model.model, layers=layers[layer:])

    @torch.no_grad()
    def below(self, ids: Tensor) -> Tensor:
        """Hidden states that enter layer l: token ids ``(batch, T)`` to ``(batch, T, d)``, on the model's device."""
        return self._below(input_ids=ids.to(self.head.weight.device), use_cache=False).last_hidden_state

    def above(self, hidden: Tensor) -> Tensor:
        """Final hidden states, after the model's last norm, from those that enter layer l; both ``(batch, T, d)``."""
        return self._above(inputs_embeds=hidden, use_cache=False).last_hidden_state

    def nll(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Summed next-token loss in nats from the hidden states that enter layer l, see :func:`next_token_nll`."""
        return next_token_nll(self.above(hidden), self.head, ids)

    def prefix(self, ids: Tensor, *, progress: bool = False) -> Tensor:
        """:meth:`below` for many windows, one at a time and kept on the CPU: ``(n, T)`` to ``(n, T, d)``."""
        # Room for all of it at once: of large models it is gigabytes, and no second copy is to be made.
        hidden = torch.empty(*ids.shape, self.head.in_features, dtype=self._below.dtype)
        for i in tqdm(range(len(ids)), desc="frozen prefix", unit="window", disable=not progress):
            hidden[i] = self.below(ids[i, None])[0]
        return hidden

    def check_prefix(self, prefix: Tensor, ids: Tensor) -> None:
        """Recompute the first window of a prefix, at the cost of one forward pass below layer l.

        Raises:
            ValueError: if ``prefix`` was not computed from ``ids`` by this model below this layer.
        """
        expected = (*ids.shape, self.head.in_features)
        if prefix.shape != expected:
            raise ValueError(f"prefix has shape {tuple(prefix.shape)}; these windows need {expected}")
        # At the first token a few huge entries hide the rest, hence the last.
        given, wanted = prefix[0, -1].float(), self.below(ids[:1])[0, -1].float().cpu()
        if not (given - wanted).norm() <= 0.05 * wanted.norm():
            raise ValueError("this prefix belongs to another layer, other windows or another model")


def _view(model: nn.Module, **replaced: nn.Module) -> nn.Module:
    """A shallow copy of a module with some children replaced; the original keeps its own."""
    view = copy.copy(model)
    view._modules = model._modules | replaced
    return view
