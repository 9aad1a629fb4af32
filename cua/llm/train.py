"""Training: Adam on the adapter's few parameters, from the frozen prefix."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM

from cua.adapter import Adapter
from cua.cayley import skew
from cua.llm.prefix import SplitModel


@dataclass(frozen=True)
class TrainConfig:
    """Adam; the learning rate is multiplied by a linear warm-up and by a cosine that falls to zero over all steps.

    Attributes:
        steps: optimiser steps.
        learning_rate: before those two factors, so the highest rate in use is a little lower; theta is dimensionless
            (radians, for small angles).
        batch: windows a step.
        warmup: steps of linear warm-up.
        max_k_norm: after each step, blocks with a larger spectral norm of K are scaled back to it; ``None``: no bound.
            Below 2 every block keeps <x, Q x> > 0, so that its global sign can be told from counts.
        seed: of the order in which windows are drawn (the adapter itself starts at zero, not at random).

    Raises:
        ValueError: for a number out of range.
    """

    steps: int
    learning_rate: float = 0.02
    batch: int = 1
    warmup: int = 20
    max_k_norm: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.warmup < 0 or self.learning_rate <= 0:
            raise ValueError(f"{self}: steps and batch are at least 1, warmup at least 0, learning_rate above 0")
        if self.max_k_norm is not None and not self.max_k_norm > 0:
            raise ValueError(f"max_k_norm={self.max_k_norm}: above 0, or None for no bound")


def window_order(n_windows: int, config: TrainConfig) -> Tensor:
    """Window indices ``(steps, batch)``: fresh permutations, one epoch after another."""
    generator = torch.Generator().manual_seed(config.seed)
    wanted = config.steps * config.batch
    epochs = [torch.randperm(n_windows, generator=generator) for _ in range(math.ceil(wanted / n_windows))]
    return torch.cat(epochs)[:wanted].view(config.steps, config.batch)


def train(
    model: LlamaForCausalLM,
    adapter: Adapter,
    windows: Tensor,
    config: TrainConfig,
    *,
    prefix: Tensor | None = None,
    progress: bool = False,
) -> list[float]:
    """Minimise the next-token loss over the adapter's parameters.

    Args:
        model: carries ``adapter``; everything else stays frozen.
        adapter: from :func:`cua.attach`.
        windows: ``(n, T)`` token ids.
        config: schedule and seed.
        prefix: hidden states ``(n, T, d)`` from ``SplitModel(model, adapter.first_layer).prefix(windows)``; computed
            here if absent.
        progress: show a progress bar.

    Returns:
        The mean loss of each step in nats a token, before that step's update.

    Raises:
        ValueError: if ``prefix`` does not belong to these windows, this model and the adapter's first layer.
    """
    split = SplitModel(model, adapter.first_layer)
    if prefix is None:
        prefix = split.prefix(windows, progress=progress)
    else:
        split.check_prefix(prefix, windows)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / max(1, config.warmup)) * (1 + math.cos(math.pi * step / config.steps)) / 2,
    )
    losses = []
    steps = tqdm(window_order(len(windows), config), desc="training", unit="step", disable=not progress)
    for batch in steps:
        ids = windows[batch].to(model.device)
        loss = split.nll(prefix[batch].to(model.device), ids) / ids[:, 1:].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if config.max_k_norm is not None:
            bound_k(adapter, config.max_k_norm)
        losses.append(loss.item())
        steps.set_postfix(loss=f"{loss.item():.3f}")
    return losses


@torch.no_grad()
def bound_k(adapter: Adapter, max_norm: float) -> None:
    """Scale each K back to a spectral norm of at most ``max_norm``: no rotation by more than 2 arctan(max_norm/2)."""
    for theta in adapter.parameters():
        norms = torch.linalg.matrix_norm(skew(theta, adapter.config.block_size), 2)
        theta *= (max_norm / norms.clamp(min=max_norm))[:, None]
