"""Cayley unitary adapters on the linear layers of a frozen model: attach, disable, detach, merge.

    adapter = attach(model, CUAConfig(target_modules=("v_proj",), layers=(15,)))
    ...train adapter.parameters()...
    adapter.merge()          # or adapter.detach()

An adapter puts a block-diagonal orthogonal matrix Q = diag(Q_1, ..., Q_n) on one side of a linear layer W:
``y = W Q x`` (side "input", as in arXiv:2605.05914) or ``y = Q (W x + bias)`` (side "output").
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cua.cayley import cayley, n_parameters, skew
from cua.readout import READOUTS, block_matmul

SIDES = ("input", "output")


@dataclass(frozen=True)
class CUAConfig:
    """Where the blocks sit and how they are read.

    Attributes:
        target_modules: a tuple of name suffixes (``("v_proj",)``; a module matches if its dotted name ends in
            one of them), or one regular expression that the whole dotted name has to match.
        layers: decoder layers to adapt, counted from 0; ``None`` for all.
        side: "input" (Q before the linear layer) or "output" (Q after it).
        block_size: b, 2 to 64; has to divide the width of that side.
        readout: "exact" or "sign-constrained", see :mod:`cua.readout`.

    Raises:
        ValueError: naming the field that is wrong and what would be right.
    """

    target_modules: tuple[str, ...] | str = ("v_proj",)
    layers: tuple[int, ...] | None = None
    side: str = "input"
    block_size: int = 4
    readout: str = "exact"

    def __post_init__(self) -> None:
        for field in ("target_modules", "layers"):  # lists come from JSON and from hurried users
            value = getattr(self, field)
            object.__setattr__(self, field, tuple(value) if isinstance(value, list | range) else value)
        if not self.target_modules:
            raise ValueError("target_modules is empty; name at least one suffix, for example ('v_proj',)")
        if isinstance(self.target_modules, str):
            try:
                re.compile(self.target_modules)
            except re.error as error:
                raise ValueError(
                    f"target_modules={self.target_modules!r} is not a regular expression: {error}"
                ) from None
        if self.layers is not None and (not self.layers or any(type(i) is not int or i < 0 for i in self.layers)):
            raise ValueError(f"layers={self.layers!r}: expected None or layer numbers counted from 0, such as (15,)")
        if self.side not in SIDES:
            raise ValueError(f"unknown side {self.side!r}; known: {', '.join(SIDES)}")
        if type(self.block_size) is not int or not 2 <= self.block_size <= 64:
            raise ValueError(f"block_size={self.block_size!r}: expected a whole number from 2 to 64")
        if self.readout not in READOUTS:
            raise ValueError(f"unknown readout {self.readout!r}; known: {', '.join(READOUTS)}")


class CayleyLinear(nn.Module):
    """A frozen linear layer with trainable orthogonal blocks on one side.

    Args:
        base_layer: the layer to wrap; its weights are used as they are.
        config: side, block size and readout.

    ``theta`` has shape ``(n_blocks, b(b-1)/2)`` and starts at zero, so that Q = I and the wrapped layer computes
    what the base layer does, bit for bit.  It is float32 (float64 for a float64 layer) whatever the base dtype;
    activations are rotated in that precision and cast back.
    """

    def __init__(self, base_layer: nn.Linear, config: CUAConfig) -> None:
        super().__init__()
        self.base_layer, self.config, self.enabled = base_layer, config, True
        weight = base_layer.weight
        # With CPU or disk offload (device_map) the weight is a meta tensor and the hook knows where to compute.
        hook = getattr(base_layer, "_hf_hook", None)
        device = getattr(hook, "execution_device", None) if weight.is_meta and hook is not None else weight.device
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        shape = (_width(base_layer, config.side) // config.block_size, n_parameters(config.block_size))
        self.theta = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))

    def blocks(self) -> Tensor:
        """The orthogonal blocks Q, ``(n_blocks, b, b)``."""
        return cayley(skew(self.theta, self.config.block_size))

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base_layer(x)
        if self.config.side == "input":
            return self.base_layer(self._rotate(x))
        return self._rotate(self.base_layer(x))

    def _rotate(self, x: Tensor) -> Tensor:
        q = self.blocks()
        return READOUTS[self.config.readout](x.to(q.dtype), q).to(x.dtype)


class Adapter:
    """A handle on the adapted layers of one model; made by :func:`attach` or :func:`cua.load`.

    Attributes:
        model: the model that carries the adapter.
        config: the :class:`CUAConfig`.
        modules: dotted module name -> :class:`CayleyLinear`, in model order.
    """

    def __init__(self, model: nn.Module, config: CUAConfig, modules: dict[str, CayleyLinear]) -> None:
        self.model, self.config, self.modules = model, config, modules

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, one ``(n_blocks, b(b-1)/2)`` tensor a module."""
        return [module.theta for module in self.modules.values()]

    @property
    def n_parameters(self) -> int:
        return sum(theta.numel() for theta in self.parameters())

    @property
    def first_layer(self) -> int:
        """The lowest decoder layer with a block: hidden states below it do not depend on the adapter."""
        return min((_layer_number(name) or 0) for name in self.modules)

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
        """Take the adapter off and return the base model, its weights untouched."""
        for name, module in self.modules.items():
            _replace(self.model, name, module.base_layer)
        return self.model

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Fold Q into the base weights (W <- W Q, or W <- Q W and bias <- Q bias) and return the plain model.

        Raises:
            ValueError: for a readout other than exact (it is not linear in x), and for weights that are quantised,
                offloaded or shared with another layer.  Nothing is changed then.
        """
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
            layer, q = module.base_layer, module.blocks().double()
            weight = layer.weight.double()
            if self.config.side == "input":
                layer.weight.copy_(block_matmul(weight, q.mT))
            else:
                layer.weight.copy_(block_matmul(weight.mT, q).mT)
                if layer.bias is not None:
                    layer.bias.copy_(block_matmul(layer.bias.double(), q))
        return self.detach()

    def __str__(self) -> str:
        total = sum(p.numel() for p in self.model.parameters()) - self.n_parameters
        rows = [
            f"{self.config.side} side, {self.config.readout} readout, {self.config.block_size}x"
            f"{self.config.block_size} blocks"
        ]
        for name, module in self.modules.items():
            rows.append(f"  {name}: {len(module.theta):,} blocks, {module.theta.numel():,} parameters")
        share = 100 * self.n_parameters / total
        rows.append(f"  trainable {self.n_parameters:,}, frozen {total:,} ({share:.2g} %)")
        return "\n".join(rows)


def attach(model: nn.Module, config: CUAConfig) -> Adapter:
    """Put zero-initialised Cayley blocks on the matching linear layers of ``model``, in place, and freeze the rest.

    Args:
        model: any module with ``nn.Linear`` layers, for example a ``LlamaForCausalLM``; on any device or device map.
        config: where and how.

    Returns:
        An :class:`Adapter`; the model's outputs are unchanged until its parameters move.

    Raises:
        ValueError: if nothing matches (the candidates are named), a matching module already has an adapter, or the
            block size does not divide a width (the sizes that do are named).  The model is unchanged then.
    """
    linear, adapted = {}, []
    for name, module in model.named_modules():
        if isinstance(module, CayleyLinear) and _matches(name, config):
            adapted.append(name)
        elif isinstance(module, nn.Linear) and name and not name.endswith(".base_layer"):
            linear[name] = module
    if adapted:
        raise ValueError(f"{adapted[0]} already has an adapter; call its detach() or merge() first")
    targets = {name: module for name, module in linear.items() if _matches(name, config)}
    if not targets:
        suffixes = sorted({name.rsplit(".", 1)[-1] for name in linear})
        numbers = [n for n in map(_layer_number, linear) if n is not None]
        where = f"; decoder layers: 0 to {max(numbers)}" if numbers else ""
        raise ValueError(
            f"no linear layer matches target_modules={config.target_modules!r}, layers={config.layers!r}; "
            f"suffixes in this model: {', '.join(suffixes) or 'none'}{where}"
        )
    widths = {name: _width(module, config.side) for name, module in targets.items()}
    for name, width in widths.items():
        if width % config.block_size:
            valid = [b for b in range(2, 65) if all(w % b == 0 for w in widths.values())]
            raise ValueError(
                f"block_size={config.block_size} does not divide the {config.side} width {width} of {name}; "
                f"sizes that fit every matched layer: {', '.join(map(str, valid))}"
            )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    modules = {name: CayleyLinear(module, config) for name, module in targets.items()}
    for name, module in modules.items():
        _replace(model, name, module)
    return Adapter(model, config, modules)


def _width(layer: nn.Linear, side: str) -> int:
    return layer.in_features if side == "input" else layer.out_features


def _matches(name: str, config: CUAConfig) -> bool:
    if config.layers is not None and _layer_number(name) not in config.layers:
        return False
    if isinstance(config.target_modules, str):
        return re.fullmatch(config.target_modules, name) is not None
    return any(f".{name}".endswith(f".{suffix}") for suffix in config.target_modules)


def _layer_number(name: str) -> int | None:
    found = re.search(r"\.layers\.(\d+)\.", f".{name}")
    return int(found[1]) if found else None


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
