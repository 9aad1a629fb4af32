"""Compressed copies of a model's projections, to see what an adapter can win back.

Three ways, each written back as a dense matrix, so that the compressed model runs like the original: what is studied is
the loss of quality, not the gain of speed.

* truncated SVD, by the inputs that the projection sees (data-aware, as in SVD-LLM, arXiv:2403.07378);
* tensor train of two cores, also called matrix product operator (Oseledets 2011; CompactifAI, arXiv:2401.14109);
* quantisation to a few bits in groups of neighbouring weights, round to nearest.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from tensorly.decomposition import tensor_train_matrix
from tensorly.tt_matrix import tt_matrix_to_matrix
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM

from cua.config import CUAConfig, matching_layers
from cua.llm.prefix import SplitModel

METHODS = ("svd", "tensor train", "quantised")


@dataclass(frozen=True)
class Compression:
    """What is compressed, and how much.

    Attributes:
        method: "svd", "tensor train" or "quantised".
        layers: decoder layers; ``None`` for all.
        target_modules: projections.
        kept: share of each matrix's numbers that its factors have ("svd", "tensor train").
        bits: a weight ("quantised").
        group: neighbouring weights of a row that share a scale and an offset of 16 bits each ("quantised").

    Raises:
        ValueError: naming the field that is wrong and what would be right.
    """

    method: str
    layers: tuple[int, ...] | None = None
    target_modules: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    kept: float = 0.9
    bits: int = 4
    group: int = 64

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; known: {', '.join(METHODS)}")
        if not 0 < self.kept <= 1:
            raise ValueError(f"kept={self.kept}: a share above 0 and at most 1")
        if not 2 <= self.bits <= 8 or self.group < 2:
            raise ValueError(f"bits={self.bits}, group={self.group}: 2 to 8 bits, groups of at least 2")


def input_moments(model: LlamaForCausalLM, windows: Tensor, compression: Compression) -> dict[str, Tensor]:
    """Second moments of the inputs of the projections that are to be compressed.

    Args:
        model: uncompressed.
        windows: ``(n, T)`` token ids of the text that the compression is to keep; not of a test text.
        compression: what is compressed.

    Returns:
        Mean of x x^T over all tokens, ``(in, in)`` float64, by dotted name.

    Raises:
        ValueError: see :func:`cua.config.matching_layers`.
    """
    layers = _matched(model, compression)
    moments = {name: torch.zeros(2 * (layer.in_features,), dtype=torch.float64) for name, layer in layers.items()}

    def watch(name: str):
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0].detach().flatten(0, -2).cpu()
            moments[name] += (x.mT @ x).double() / windows.numel()

        return hook

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        split = SplitModel(model, len(model.model.layers))
        for window in windows.split(1):
            split.below(window)
    finally:
        for hook in hooks:
            hook.remove()
    return moments


@torch.no_grad()
def compress(
    model: LlamaForCausalLM, compression: Compression, moments: dict[str, Tensor], *, progress: bool = False
) -> float:
    """Replace the weights of the matched projections, in place, by their compressed version.

    Args:
        model: changed; keep the original's weights elsewhere to get them back.
        compression: what and how much.
        moments: from :func:`input_moments`.
        progress: show a progress bar.

    Returns:
        Bits that the compressed projections take, as a share of the 16 bits a weight of all the model's projections.

    Raises:
        ValueError: see :func:`cua.config.matching_layers` and :func:`quantised`.
        KeyError: for a projection without moments.
    """
    layers = _matched(model, compression)
    total = sum(m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in n)
    saved = 0.0
    for name, layer in tqdm(layers.items(), desc=compression.method, unit="matrix", disable=not progress):
        weight = layer.weight.detach().cpu().float()
        if compression.method == "svd":
            small, bits = truncated_svd(weight, compression.kept, moments[name])
        elif compression.method == "tensor train":
            small, bits = tensor_train(weight, compression.kept, moments[name])
        else:
            small, bits = quantised(weight, compression.bits, compression.group, moments[name])
        layer.weight.copy_(small)
        saved += 16 * weight.numel() - bits
    return 1 - saved / (16 * total)


def truncated_svd(weight: Tensor, kept: float, moment: Tensor) -> tuple[Tensor, int]:
    """The matrix of the rank that ``kept`` allows with the least mean squared error of the projection's output.

    With the root L of the inputs' moments C = L L^T, ``E|(W - W')x|^2 = |(W - W') L|^2``, which the leading left
    singular vectors U of W L make least: W' = U U^T W.

    Args:
        weight: W, ``(out, in)``.
        kept: share of the numbers.
        moment: C, ``(in, in)``.

    Returns:
        W', and the bits of its factors at 16 a number.
    """
    out, in_ = weight.shape
    rank = max(1, int(kept * weight.numel() / (out + in_)))
    values, vectors = torch.linalg.eigh(moment)  # with few tokens C has no inverse, so no Cholesky root
    root = vectors * values.clamp(min=1e-6 * values[-1] / in_).sqrt()
    u = torch.linalg.svd(weight.double() @ root, full_matrices=False).U[:, :rank]
    return (u @ (u.mT @ weight.double())).float(), 16 * rank * (out + in_)


def tensor_train(weight: Tensor, kept: float, moment: Tensor) -> tuple[Tensor, int]:
    """A tensor train (matrix product operator) of two cores.

    Rows and columns are split in two, W[(o1 o2), (i1 i2)], and the cores G1[o1, i1, r] and G2[r, o2, i2] joined by the
    largest bond r that ``kept`` allows.  Columns are scaled by the root mean square of their input, so that errors
    count where they matter; the scales go into the layer before.

    Args, Returns: as :func:`truncated_svd`.
    """
    shape = [_near_square(n) for n in weight.shape]
    first, second = (math.prod(sizes) for sizes in zip(*shape, strict=True))
    bond = min(first, second, max(1, int(kept * weight.numel() / (first + second))))
    scale = moment.diagonal().sqrt().float().clamp(min=1e-6)
    tensor = (weight * scale).reshape(*shape[0], *shape[1]).numpy()
    train = tensor_train_matrix(tensor, (1, bond, 1))
    return torch.from_numpy(np.ascontiguousarray(tt_matrix_to_matrix(train))) / scale, 16 * bond * (first + second)


def quantised(weight: Tensor, bits: int, group: int, moment: Tensor) -> tuple[Tensor, int]:
    """Rounded to the nearest of 2^bits levels, evenly spaced in each group of neighbours.

    The levels span the group's range, or less of it where clipping the largest weights makes the error smaller, errors
    being weighted by the mean square of their input.

    Args:
        weight: W, ``(out, in)``.
        bits: of a weight.
        group: neighbours in a row; has to divide ``in``.
        moment: C, ``(in, in)``.

    Returns:
        The rounded W, and its bits, scales and offsets included.

    Raises:
        ValueError: for a group that does not divide a row.
    """
    if weight.shape[1] % group:
        raise ValueError(f"group={group} does not divide the {weight.shape[1]} weights of a row")
    w = weight.reshape(-1, group)
    importance = moment.diagonal().float().expand_as(weight).reshape(-1, group)
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    best, least = torch.empty_like(w), torch.full_like(low, torch.inf)
    for part in torch.linspace(1.0, 0.6, 9):
        middle, step = (low + high) / 2, (high - low).clamp(min=1e-12) * part / (2**bits - 1)
        start = middle - step * (2**bits - 1) / 2
        rounded = ((w - start) / step).round().clamp(0, 2**bits - 1) * step + start
        error = (importance * (rounded - w) ** 2).sum(1, keepdim=True)
        best, least = torch.where(error < least, rounded, best), torch.minimum(error, least)
    return best.reshape(weight.shape), weight.numel() * bits + 2 * 16 * len(w)


def _matched(model: LlamaForCausalLM, compression: Compression) -> dict[str, nn.Linear]:
    return matching_layers(model, CUAConfig(compression.target_modules, compression.layers, block_size=2))


def _near_square(n: int) -> tuple[int, int]:
    """The two factors of n that are closest to each other, the smaller first."""
    return max((d, n // d) for d in range(1, math.isqrt(n) + 1) if n % d == 0)
