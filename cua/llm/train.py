"""Training: Adam on the adapter's few parameters, from the frozen prefix.

Under ``accelerate launch`` several processes share the windows of each step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM

from cua.adapter import Adapter
from cua.cayley import skew
from cua.llm.loss import distillation_kl, next_token_nll
from cua.llm.prefix import SplitModel

if TYPE_CHECKING:
    from cua.llm.baselines import PeftAdapter


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
        distillation: weight of the divergence from a teacher; the next-token loss has the rest.  0: no teacher.
        temperature: that softens both distributions of the divergence, see :func:`cua.llm.loss.distillation_kl`.

    Raises:
        ValueError: for a number out of range.
    """

    steps: int
    learning_rate: float = 0.02
    batch: int = 1
    warmup: int = 20
    max_k_norm: float | None = None
    seed: int = 0
    distillation: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.warmup < 0 or self.learning_rate <= 0:
            raise ValueError(f"{self}: steps and batch are at least 1, warmup at least 0, learning_rate above 0")
        if self.max_k_norm is not None and not self.max_k_norm > 0:
            raise ValueError(f"max_k_norm={self.max_k_norm}: above 0, or None for no bound")
        if not 0 <= self.distillation <= 1 or self.temperature <= 0:
            raise ValueError(f"{self}: distillation is a weight from 0 to 1, temperature above 0")


def window_order(n_windows: int, config: TrainConfig) -> Tensor:
    """Window indices ``(steps, batch)``: fresh permutations, one epoch after another."""
    if n_windows < 1:
        raise ValueError("no windows to train on: the text is shorter than one, or the slice of them is empty")
    generator = torch.Generator().manual_seed(config.seed)
    wanted = config.steps * config.batch
    epochs = [torch.randperm(n_windows, generator=generator) for _ in range(math.ceil(wanted / n_windows))]
    return torch.cat(epochs)[:wanted].view(config.steps, config.batch)


def train(
    model: LlamaForCausalLM,
    adapter: "Adapter | PeftAdapter | Sequence[Adapter] | Sequence[PeftAdapter]",
    windows: Tensor,
    config: TrainConfig,
    *,
    split: SplitModel | None = None,
    prefix: Tensor | None = None,
    teacher: Tensor | None = None,
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
    progress: bool = False,
) -> list[float]:
    """Minimise the next-token loss, or its mixture with a teacher's, over the adapter's parameters.

    Args:
        model: carries ``adapter``; everything else stays frozen.
        adapter: from :func:`~cua.adapter.attach`, or of PEFT (which has no blocks, so no ``max_k_norm``).  Several,
            such as one on inputs and one on outputs of other projections, are trained together.
        windows: ``(n, T)`` token ids.
        config: schedule and seed.
        split: at or below the adapter's first layer; at that layer if left out.
        prefix: hidden states ``(n, T, d)`` from ``split.prefix(windows)``; if left out, computed here for the windows
            that are drawn.
        teacher: final hidden states ``(n, T, d)`` of the teacher from :func:`teacher_states`, where
            ``config.distillation`` is above 0.
        optimizer: class to make one of, from parameters and learning rate.
        progress: show a progress bar.

    Returns:
        The mean loss of each step in nats a token, before that step's update.

    Raises:
        ValueError: if the split leaves an adapted layer below it; if ``prefix`` does not belong to it and these
            windows; if the teacher is missing, not wanted or of another shape; if ``config.batch`` cannot be shared
            equally by the processes; if an adapter of PEFT is to keep ``max_k_norm``; if there is no adapter.
    """
    state = PartialState()
    if config.batch % state.num_processes:
        raise ValueError(f"batch={config.batch} cannot be shared equally by {state.num_processes} processes")
    if (teacher is None) != (config.distillation == 0):
        raise ValueError(f"distillation={config.distillation}, but {'no' if teacher is None else 'a'} teacher is given")
    adapters = list(adapter) if isinstance(adapter, Sequence) else [adapter]
    if not adapters:
        raise ValueError("no adapter to train: the sequence is empty")
    if config.max_k_norm is not None and not all(isinstance(one, Adapter) for one in adapters):
        raise ValueError(f"max_k_norm={config.max_k_norm} bounds Cayley blocks; this adapter is of PEFT")
    first_layer = min(one.first_layer for one in adapters)
    split = split or SplitModel(model, first_layer)
    if split.layer > first_layer:
        raise ValueError(f"a split at layer {split.layer} leaves the adapter of layer {first_layer} below it")
    if teacher is not None and teacher.shape != (expected := (*windows.shape, split.head.in_features)):
        raise ValueError(f"teacher has shape {tuple(teacher.shape)}; these windows need {expected}")
    drawn = window_order(len(windows), config)
    mine = drawn[:, state.process_index :: state.num_processes]  # this process's windows of each step
    if prefix is None:
        used, mine = mine.unique(return_inverse=True)
        windows, prefix = windows[used], split.prefix(windows[used], progress=progress)
        teacher = None if teacher is None else teacher[used]
    else:
        split.check_prefix(prefix, windows)
    parameters = [parameter for one in adapters for parameter in one.parameters()]
    stepper = optimizer(parameters, lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        stepper,
        lambda step: min(1.0, (step + 1) / max(1, config.warmup)) * (1 + math.cos(math.pi * step / config.steps)) / 2,
    )
    losses = []
    steps = tqdm(mine, desc="training", unit="step", disable=not progress)
    for batch in steps:
        ids = windows[batch].to(model.device)
        output = split.above(prefix[batch].to(model.device))
        loss = (1 - config.distillation) * next_token_nll(output, split.head, ids)
        if teacher is not None:
            towards = teacher[batch].to(model.device)
            loss = loss + config.distillation * distillation_kl(output, split.head, towards, config.temperature)
        loss = loss / (config.batch * (windows.shape[1] - 1))
        stepper.zero_grad()
        loss.backward()
        for parameter in parameters:  # each process has seen its share of the windows
            parameter.grad = reduce(parameter.grad, "sum")
        stepper.step()
        schedule.step()
        if config.max_k_norm is not None:
            for one in adapters:
                bound_k(one, config.max_k_norm)
        losses.append(reduce(loss.detach(), "sum").item())
        steps.set_postfix(loss=f"{losses[-1]:.3f}")
    return losses


@torch.no_grad()
def teacher_states(
    model: LlamaForCausalLM, windows: Tensor, *, dtype: torch.dtype = torch.bfloat16, progress: bool = False
) -> Tensor:
    """What a teacher is cached as: its final hidden states, from which the head that it shares makes its logits.

    The whole distribution is kept; a token takes d numbers where its logits would take V.  What is lost is the rounding
    to ``dtype``.

    Args:
        model: the teacher as it stands, adapter included.
        windows: ``(n, T)`` token ids.
        dtype: of the cache.
        progress: show a progress bar.

    Returns:
        ``(n, T, d)``, after the model's last norm, on the CPU.
    """
    split = SplitModel(model, len(model.model.layers))
    steps = tqdm(windows.split(1), desc="teacher", unit="window", disable=not progress)
    return torch.cat([split.above(split.below(window)).to(dtype).cpu() for window in steps])


@torch.no_grad()
def bound_k(adapter: Adapter, max_norm: float) -> None:
    """Scale each K back to a spectral norm of at most ``max_norm``: no rotation by more than 2 arctan(max_norm/2)."""
    for module in adapter.modules.values():
        norms = torch.linalg.matrix_norm(skew(module.theta, adapter.config.block_size), 2)
        module.theta *= (max_norm / norms.clamp(min=max_norm))[:, None]
