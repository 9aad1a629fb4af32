"""Which components belong together in a block, and which blocks are worth their parameters: read off one gradient.

For blocks of components chosen freely the candidates are all pairs (i, j) of a layer's components, each with an entry
K_ij of one large skew-symmetric K.  At K = 0 the gradient of the loss with respect to all of them is one matrix product
a layer: with y = Q z and Q = I - K + O(K^2),

    dL/dK_ij = -sum_t (g_ti z_tj - g_tj z_ti),        g_t = dL/dy_t,

a sum over tokens t.  Blocks are then grown around the largest entries.
"""

from collections.abc import Callable, Iterable

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM

from cua.config import CUAConfig, layer_number, matching_layers, side_width
from cua.llm.prefix import SplitModel

GRADIENT_WINDOWS = 32
"""Windows, spread evenly over the training text, whose gradients are enough to choose blocks by."""


def rotation_gradients(
    model: LlamaForCausalLM, windows: Tensor, config: CUAConfig, *, progress: bool = False
) -> dict[str, Tensor]:
    """Gradient of the mean next-token loss with respect to every rotation of two components, at the identity.

    Under ``accelerate launch`` the processes share the windows.

    Args:
        model: without adapters on these layers.
        windows: ``(n, T)`` token ids, of the text to be trained on.
        config: layers and side; its readout is not used, and size and strides only have to fit the width.
        progress: show a progress bar.

    Returns:
        dL/dK by dotted name of the layer: skew-symmetric ``(width, width)``, float32, in nats a token.

    Raises:
        ValueError: see :func:`cua.config.matching_layers`.
    """
    layers = matching_layers(model, config)
    split = SplitModel(model, min(layer_number(name) or 0 for name in layers))
    sums = {
        name: torch.zeros(2 * (side_width(layer, config.side),), device=layer.weight.device)
        for name, layer in layers.items()
    }

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def forward_hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            z = (inputs[0] if config.side == "input" else output).detach().flatten(0, -2).float()

            def backward_hook(gradient: Tensor) -> None:
                g = gradient.detach().flatten(0, -2)
                g = (g @ layer.weight if config.side == "input" else g).float()
                sums[name].addmm_(g.mT, z)

            output.register_hook(backward_hook)

        return forward_hook

    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        state = PartialState()
        mine = windows[state.process_index :: state.num_processes]
        for ids in tqdm(mine.split(1), desc="rotation gradients", unit="window", disable=not progress):
            hidden = split.below(ids).requires_grad_()  # the model is frozen: this makes gradients flow
            split.nll(hidden, ids.to(hidden.device)).backward()
    finally:
        for hook in hooks:
            hook.remove()
    tokens = len(windows) * (windows.shape[1] - 1)
    totals = ((name, reduce(sums.pop(name), "sum").cpu()) for name in list(sums))  # never both of all layers in memory
    return {name: (total.mT - total) / tokens for name, total in totals}


def weight_gradients(
    model: LlamaForCausalLM, windows: Tensor, names: Iterable[str], *, progress: bool = False
) -> dict[str, Tensor]:
    """Gradient of the mean next-token loss with respect to the weights of some layers.

    Args:
        model: frozen, without adapters on these layers.
        windows: ``(n, T)`` token ids, of the text to be trained on.
        names: dotted names of linear layers.
        progress: show a progress bar.

    Returns:
        dL/dW by name, of the weights' shapes ``(out, in)``, in nats a token.  The weights are frozen and without a
        gradient afterwards.
    """
    weights = {name: model.get_submodule(name).weight for name in names}
    try:
        for weight in weights.values():
            weight.requires_grad_()
        backward(model, windows, progress=progress)
        return {name: weight.grad for name, weight in weights.items()}
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
            weight.grad = None


def backward(model: LlamaForCausalLM, windows: Tensor, *, progress: bool = False) -> None:
    """Add the gradient of the mean next-token loss on ``windows`` to every parameter that wants one."""
    split = SplitModel(model, 0)
    tokens = len(windows) * (windows.shape[1] - 1)
    for ids in tqdm(windows.split(1), desc="gradients", unit="window", disable=not progress):
        (split.nll(split.below(ids), ids.to(model.device)) / tokens).backward()


def choose_groups(gradients: dict[str, Tensor], block_size: int, n_blocks: int) -> dict[str, Tensor]:
    """The blocks with the largest gradients, and the components of each.

    Greedy, layer by layer: the pair with the largest ``|dL/dK_ij|`` among the components that are left begins a block;
    then the component with the largest sum of ``|dL/dK|`` to those already there joins, until the block is full.  Of
    the blocks of all layers those with the largest sum over their pairs are kept.

    Args:
        gradients: from :func:`rotation_gradients`.
        block_size: b, the components of a block.
        n_blocks: of all layers together.

    Returns:
        int64 ``(blocks of this layer, b)`` by the name of the layer, as :func:`~cua.adapter.attach` takes them, the
        largest first; layers without a block are left out.

    Raises:
        ValueError: if the layers do not have so many blocks.
    """
    most = sum(len(gradient) // block_size for gradient in gradients.values())
    if not 1 <= n_blocks <= most:
        raise ValueError(f"n_blocks={n_blocks}: these layers have components for 1 to {most} blocks of {block_size}")
    candidates = [
        (score, name, group)
        for name, gradient in gradients.items()
        for score, group in _grow(gradient, block_size, min(n_blocks, len(gradient) // block_size))
    ]
    chosen: dict[str, list[list[int]]] = {}
    for _, name, group in sorted(candidates, key=lambda candidate: -candidate[0])[:n_blocks]:
        chosen.setdefault(name, []).append(group)
    return {name: torch.tensor(chosen[name]) for name in gradients if name in chosen}


def _grow(gradient: Tensor, block_size: int, n_blocks: int) -> list[tuple[float, list[int]]]:
    """Disjoint blocks of one layer with their scores."""
    size = gradient.abs().clone()
    size.fill_diagonal_(-torch.inf)  # and so become rows and columns that are taken
    largest, partner = size.max(1)  # of each row
    blocks = []
    for _ in range(n_blocks):
        first = largest.argmax().item()
        group = [first, partner[first].item()]
        score = largest[first].item()
        while len(group) < block_size:
            ties = size[group].sum(0)
            group.append(ties.argmax().item())
            score += ties[group[-1]].item()
        blocks.append((score, group))
        size[group], size[:, group] = -torch.inf, -torch.inf
        largest[group] = -torch.inf
        alone = torch.isin(partner, torch.tensor(group)) & (largest > -torch.inf)
        largest[alone], partner[alone] = size[alone].max(1)
    return blocks
