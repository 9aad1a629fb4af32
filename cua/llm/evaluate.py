"""Perplexity, with everything that its value depends on."""

import math
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM

from cua.llm.prefix import SplitModel


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean next-token loss over non-overlapping windows (stride = window).

    Attributes:
        nll: summed loss of each window in nats, in order; keep it for paired comparisons.
        window: tokens a window; each gives ``window - 1`` predictions, its first token is context only.
        bos: whether that first token is the BOS token.
    """

    nll: tuple[float, ...]
    window: int
    bos: bool

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        return len(self.nll) * (self.window - 1)

    @property
    def value(self) -> float:
        return math.exp(sum(self.nll) / self.tokens)

    def __str__(self) -> str:
        return f"perplexity {self.value:.2f} ({self.tokens:,} tokens, windows of {self.window:,}" + (
            ", BOS)" if self.bos else ", no BOS)"
        )


@torch.no_grad()
def perplexity(
    model: LlamaForCausalLM,
    windows: Tensor,
    *,
    split: SplitModel | None = None,
    prefix: Tensor | None = None,
    progress: bool = False,
) -> Perplexity:
    """Token perplexity of a model as it stands, adapter included; under ``accelerate launch`` the processes share it.

    Args:
        model: a ``LlamaForCausalLM``.
        windows: ``(n, T)`` token ids from :func:`cua.llm.data.windows`.
        split, prefix: hidden states from ``split.prefix(windows)``, to compute only the layers above the split.
        progress: show a progress bar.

    Returns:
        A :class:`Perplexity`.

    Raises:
        ValueError: without any window; for a prefix without its split, or one that does not belong to it and these
            windows.
    """
    if not len(windows):
        raise ValueError("no windows to measure on: the text is shorter than one, or the slice of them is empty")
    if prefix is not None and split is None:
        raise ValueError("a prefix belongs to a split; pass the SplitModel that computed it as well")
    split = split or SplitModel(model, 0)
    if prefix is not None:
        split.check_prefix(prefix, windows)
    state = PartialState()
    mine = range(state.process_index, len(windows), state.num_processes)
    losses = []
    for i in tqdm(mine, desc="perplexity", unit="window", disable=not progress):
        ids = windows[i : i + 1].to(model.device)
        hidden = split.below(ids) if prefix is None else prefix[i : i + 1].to(model.device)
        losses.append((i, split.nll(hidden, ids).item()))
    bos = bool((windows[:, 0] == model.config.bos_token_id).all())
    return Perplexity(tuple(loss for _, loss in sorted(gather_object(losses))), windows.shape[1], bos)
