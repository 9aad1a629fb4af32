"""Cayley unitary adapters on the linear layers of a frozen model: attach, disable, detach, merge.

    adapter = attach(model, CUAConfig(target_modules=("v_proj",), layers=(15,)))
    ...train adapter.parameters()...
    adapter.merge()          # or adapter.detach()

An adapter puts a block-diagonal orthogonal matrix Q = diag(Q_1, ..., Q_n) on one side of a linear layer W:
``y = W Q x`` (side "input", where the block count of arXiv:2605.05914 puts it) or ``y = Q (W x + bias)`` (side
"output").
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cua.cayley import cayley, skew
from cua.config import CUAConfig, check_groups, layer_number, matching_layers, theta_shape
from cua.readout import READOUTS, apply_blocks


class CayleyLinear(nn.Module):
    """A frozen linear layer with trainable orthogonal blocks on one side.

    Args:
        base_layer: the layer to wrap; its weights are used as they are.
        config: side, block size and readout.
        groups: int64 ``(n_blocks, b)``, the components that each block turns; no component twice.  The others pass
            through.  ``None``: all components in their order, by the config's strides.

    ``theta`` has shape ``(n_blocks, b(b-1)/2)`` and starts at zero, so that Q = I and the wrapped layer computes
    what the base layer does, bit for bit.  It is float32 (float64 for a float64 layer) whatever the base dtype;
    activations are rotated in that precision and cast back.  ``log_gain``, ``(n_blocks,)`` or ``None``, starts at zero
    as well: what leaves block n is multiplied by exp(log_gain[n]).
    """

    def __init__(self, base_layer: nn.Linear, config: CUAConfig, groups: Tensor | None = None) -> None:
        super().__init__()
        self.base_layer, self.config, self.enabled = base_layer, config, True
        # Readouts that run the blocks of each stride somewhere else, see cua.hybrid.
        self.executors: tuple[Callable[[Tensor, Tensor], Tensor], ...] = ()
        weight = base_layer.weight
        # With CPU or disk offload (device_map) the weight is a meta tensor and the hook knows where to compute.
        hook = getattr(base_layer, "_hf_hook", None)
        device = getattr(hook, "execution_device", None) if weight.is_meta and hook is not None else weight.device
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.theta = nn.Parameter(torch.zeros(theta_shape(base_layer, config, groups), dtype=dtype, device=device))
        self.log_gain = nn.Parameter(torch.zeros_like(self.theta[:, 0])) if config.gain else None
        self.register_buffer("groups", None if groups is None else groups.to(device), persistent=False)

    def blocks(self) -> Tensor:
        """The orthogonal blocks Q, ``(n_blocks, b, b)``, those of the first stride first."""
        return cayley(skew(self.theta, self.config.block_size))

    def blocks_by_stride(self) -> list[tuple[int, Tensor]]:
        """:meth:`blocks` with their strides, in the order in which they are applied."""
        return list(zip(self.config.strides, self.blocks().chunk(len(self.config.strides)), strict=True))

    def gains(self) -> Tensor:
        """The factor on what leaves each block, ``(n_blocks,)``: one without gains."""
        return torch.ones_like(self.theta[:, 0]) if self.log_gain is None else self.log_gain.exp()

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base_layer(x)
        if self.config.side == "input":
            return self.base_layer(self._rotate(x))
        return self._rotate(self.base_layer(x))

    def _rotate(self, x: Tensor) -> Tensor:
        y = self.take(x).to(self.theta.dtype)
        gains = self.gains().chunk(len(self.config.strides))
        for i, layer in enumerate(self.blocks_by_stride()):
            read = self.executors[i] if self.executors else READOUTS[self.config.readout]
            if self.log_gain is not None:
                read = _with_gain(read, gains[i])
            y = apply_blocks(y, [layer], read)
        return self.put(x, y.to(x.dtype))

    def take(self, x: Tensor) -> Tensor:
        """The components of ``x``, ``(..., width)``, that the blocks turn, one block after another."""
        return x if self.groups is None else x[..., self.groups.flatten()]

    def put(self, x: Tensor, turned: Tensor) -> Tensor:
        """``x`` with what :meth:`take` gave replaced by ``turned``; a new tensor."""
        return turned if self.groups is None else x.index_copy(-1, self.groups.flatten(), turned)


def _with_gain(read: Callable[[Tensor, Tensor], Tensor], gain: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, q: read(x, q) * gain.repeat_interleave(q.shape[-1])


class Adapter:
    """A handle on the adapted layers of one model; made by :func:`attach` or :func:`~cua.checkpoint.load`.

    Attributes:
        model: the model that carries the adapter.
        config: the :class:`CUAConfig`.
        modules: dotted module name -> :class:`CayleyLinear`, in model order.
    """

    def __init__(self, model: nn.Module, config: CUAConfig, modules: dict[str, CayleyLinear]) -> None:
        self.model, self.config, self.modules = model, config, modules

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters: one ``(n_blocks, b(b-1)/2)`` tensor a module, then ``(n_blocks,)`` where there are
        gains."""
        gains = [module.log_gain for module in self.modules.values() if module.log_gain is not None]
        return [module.theta for module in self.modules.values()] + gains

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def first_layer(self) -> int:
        """The lowest decoder layer with a block: hidden states below it do not depend on the adapter."""
        return min((layer_number(name) or 0) for name in self.modules)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside this context the model computes what the base model does."""
        before = {name: module.enabled for name, module in self.modules.items()}
        try:
            for module in self.modules.values():
                module.enabled = False
            yield
        finally:
            for name, module in self.modules.items():
                module.enabled = before[name]

    def detach(self) -> nn.Module:
        """Take the adapter off and return the base model, its weights untouched (and still frozen).

        Raises:
            ValueError: if it has been taken off or merged before.
        """
        self.check_attached()
        for name, module in self.modules.items():
            _replace(self.model, name, module.base_layer)
        return self.model

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Fold Q into the base weights (W <- W Q, or W <- Q W and bias <- Q bias) and return the plain model.

        Raises:
            ValueError: for a readout other than exact (it is not linear in x), for weights that are quantised,
                offloaded or shared with another layer, and for an adapter that has been taken off or merged before.
                Nothing is changed then.
        """
        self.check_attached()
        if self.config.readout != "exact":
            raise ValueError(
                f"the {self.config.readout} readout is not a linear map of the activations, so no weight matrix equals "
                "it; merge works with readout='exact'"
            )
        uses: dict[int, int] = {}
        for _, parameter in self.model.named_parameters(remove_duplicate=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
        for name, module in self.modules.items():
            weight = module.base_layer.weight
            if weight.is_meta or not weight.is_floating_point():
                raise ValueError(f"{name}: its weights are offloaded or quantised; load the model in full to merge")
            if uses[id(weight)] > 1:
                raise ValueError(f"{name}: its weight is shared with another layer, which merging would change too")
        for module in self.modules.values():
            layer, gains = module.base_layer, module.gains().double()[:, None, None].chunk(len(self.config.strides))
            blocks = [(s, gain * q.double()) for (s, q), gain in zip(module.blocks_by_stride(), gains, strict=True)]

            def turned(x: Tensor, blocks: list[tuple[int, Tensor]], module: CayleyLinear = module) -> Tensor:
                return module.put(x.double(), apply_blocks(module.take(x.double()), blocks))

            if self.config.side == "input":  # each row w of W becomes Q^T w
                layer.weight.copy_(turned(layer.weight, [(stride, q.mT) for stride, q in reversed(blocks)]))
            else:
                layer.weight.copy_(turned(layer.weight.mT, blocks).mT)
                if layer.bias is not None:
                    layer.bias.copy_(turned(layer.bias, blocks))
        return self.detach()

    def check_attached(self) -> None:
        """Raise ``ValueError`` if it has been taken off or merged."""
        for name, module in self.modules.items():
            if self.model.get_submodule(name) is not module:
                raise ValueError(f"{name} does not carry this adapter any more: it was detached, merged or replaced")

    def __str__(self) -> str:
        frozen = sum(p.numel() for p in self.model.parameters() if not p.requires_grad)
        config, b = self.config, self.config.block_size
        strides = f", strides {', '.join(map(str, config.strides))}" if config.strides != (1,) else ""
        gain = ", a gain each" if config.gain else ""
        rows = [f"{config.side} side, {config.readout} readout, {b}x{b} blocks{strides}{gain}"]
        for name, module in self.modules.items():
            count = sum(parameter.numel() for parameter in module.parameters(recurse=False))
            rows.append(f"  {name}: {len(module.theta):,} blocks, {count:,} parameters")
        rows.append(f"  trainable {self.n_parameters:,}, frozen {frozen:,}: one in {frozen // self.n_parameters:,}")
        return "\n".join(rows)


def attach(model: nn.Module, config: CUAConfig, groups: dict[str, Tensor] | None = None) -> Adapter:
    """Put zero-initialised Cayley blocks on the matching linear layers of ``model``, in place, and freeze the rest.

    Args:
        model: any module with ``nn.Linear`` layers, for example a ``LlamaForCausalLM``; on any device or device map.
        config: where and how.
        groups: for blocks on chosen components only, such as :func:`cua.llm.placement.choose_groups` finds: int64
            ``(n_blocks, b)`` by the dotted name of the linear layer.  Layers that it leaves out get no blocks.

    Returns:
        An :class:`Adapter`; the model's outputs are unchanged until its parameters move.

    Raises:
        ValueError: see :func:`matching_layers`; or if ``groups`` name a layer that the config does not match, or are
            not distinct components of it.  The model is unchanged then.
    """
    layers = matching_layers(model, config)
    if groups is not None:
        check_groups(groups, layers, config)
        layers = {name: layer for name, layer in layers.items() if name in groups}
    modules = {name: CayleyLinear(layer, config, (groups or {}).get(name)) for name, layer in layers.items()}
    for module in model.modules():
        if not isinstance(module, CayleyLinear):  # an adapter on other layers stays trainable
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
    for name, module in modules.items():
        _replace(model, name, module)
    return Adapter(model, config, modules)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
