"""Where blocks sit in a model: the configuration, and the linear layers that it matches."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cua.cayley import n_parameters
from cua.readout import READOUTS

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
        strides: one layer of blocks for each entry, applied in turn; the blocks of a layer with stride s act on
            components that lie s apart.  (1,) is the plain block-diagonal matrix; (1, b) a butterfly, which mixes b^2
            components.  b s has to divide the width.
        readout: "exact" or "sign-constrained", see :mod:`cua.readout`.
        gain: give each block one more parameter, the logarithm of a positive factor on what leaves it.  The block stays
            orthogonal; the factor is applied classically, where a quantum processor's output gets its length back.

    Raises:
        ValueError: naming the field that is wrong and what would be right.

    >>> CUAConfig(layers=[3], side="inside")
    Traceback (most recent call last):
    ValueError: unknown side 'inside'; known: input, output
    """

    target_modules: tuple[str, ...] | str = ("v_proj",)
    layers: tuple[int, ...] | None = None
    side: str = "input"
    block_size: int = 4
    strides: tuple[int, ...] = (1,)
    readout: str = "exact"
    gain: bool = False

    def __post_init__(self) -> None:
        for field in ("target_modules", "layers", "strides"):  # lists come from JSON and from hurried users
            value = getattr(self, field)
            object.__setattr__(self, field, tuple(value) if isinstance(value, list | set | range) else value)
        suffixes = self.target_modules
        if not suffixes or not (isinstance(suffixes, str) or all(isinstance(name, str) for name in suffixes)):
            raise ValueError(f"target_modules={suffixes!r}: expected suffixes such as ('v_proj',), or one regex")
        if isinstance(self.target_modules, str):
            try:
                re.compile(self.target_modules)
            except re.error as error:
                raise ValueError(
                    f"target_modules={self.target_modules!r} is not a regular expression: {error}"
                ) from None
        layers = self.layers
        if layers is not None and (
            not isinstance(layers, tuple) or not layers or any(type(i) is not int or i < 0 for i in layers)
        ):
            raise ValueError(f"layers={layers!r}: expected None or layer numbers counted from 0, such as (15,)")
        if self.side not in SIDES:
            raise ValueError(f"unknown side {self.side!r}; known: {', '.join(SIDES)}")
        if type(self.block_size) is not int or not 2 <= self.block_size <= 64:
            raise ValueError(f"block_size={self.block_size!r}: expected a whole number from 2 to 64")
        strides = self.strides
        if not isinstance(strides, tuple) or not strides or any(type(s) is not int or s < 1 for s in strides):
            raise ValueError(f"strides={strides!r}: expected whole numbers from 1, such as (1,) or (1, block_size)")
        if self.readout not in READOUTS:
            raise ValueError(f"unknown readout {self.readout!r}; known: {', '.join(READOUTS)}")
        if type(self.gain) is not bool:
            raise ValueError(f"gain={self.gain!r}: expected True or False")


def theta_shape(layer: nn.Linear, config: CUAConfig, groups: Tensor | None = None) -> tuple[int, int]:
    """Shape of the parameters on one layer, ``(n_blocks, b(b-1)/2)``; the blocks of the first stride come first."""
    n_blocks = len(config.strides) * side_width(layer, config.side) // config.block_size
    return n_blocks if groups is None else len(groups), n_parameters(config.block_size)


def check_groups(groups: dict[str, Tensor], layers: dict[str, nn.Linear], config: CUAConfig) -> None:
    """Raise unless ``groups`` are blocks of distinct components of some of ``layers``.

    Raises:
        ValueError: naming the layer and what is wrong with it.
    """
    if not groups or config.strides != (1,):
        raise ValueError(
            f"groups of {len(groups)} layers, strides={config.strides}: groups need a layer and strides (1,)"
        )
    for name, group in groups.items():
        if name not in layers:
            raise ValueError(f"groups name {name}, which target_modules and layers of the config do not match")
        if group.dtype != torch.int64 or group.dim() != 2 or group.shape[1] != config.block_size or not len(group):
            raise ValueError(
                f"groups of {name}: {group.dtype} {tuple(group.shape)}; expected int64 (n_blocks, {config.block_size})"
            )
        width = side_width(layers[name], config.side)
        if group.min() < 0 or group.max() >= width or len(group.unique()) < group.numel():
            raise ValueError(f"groups of {name}: expected distinct components from 0 to {width - 1}")


def matching_layers(model: nn.Module, config: CUAConfig) -> dict[str, nn.Linear]:
    """The linear layers that :func:`attach` would wrap, by dotted name, in model order.

    Raises:
        ValueError: if nothing matches, or nothing matches one of the suffixes or layer numbers (the candidates are
            named), a matching module already has an adapter, or the block size does not divide a width (the sizes
            that do are named).
    """
    linear = {}
    for name, module in model.named_modules():
        wrapped = name.removesuffix(".base_layer")
        if isinstance(module, nn.Linear) and wrapped != name and _matches(wrapped, config):
            raise ValueError(f"{wrapped} already has an adapter; call its detach() or merge() first")
        if isinstance(module, nn.Linear) and wrapped == name != "":
            linear[name] = module
    targets = {name: module for name, module in linear.items() if _matches(name, config)}
    matched = {layer_number(name) for name in targets}
    idle = [f"layer {n}" for n in config.layers or () if n not in matched]
    if not isinstance(config.target_modules, str):
        idle += [f"target {suffix!r}" for suffix in config.target_modules if not any(_ends(n, suffix) for n in targets)]
    if idle or not targets:
        suffixes = sorted({name.rsplit(".", 1)[-1] for name in linear})
        numbers = [n for n in map(layer_number, linear) if n is not None]
        where = f"; decoder layers: 0 to {max(numbers)}" if numbers else ""
        if config.target_modules in suffixes:
            where += "; a string has to match the whole name as a regular expression, a tuple (...,) holds suffixes"
        part = f"{' or '.join(idle)} of " if targets else ""
        raise ValueError(
            f"no linear layer matches {part}target_modules={config.target_modules!r}, layers={config.layers!r}; "
            f"suffixes in this model: {', '.join(suffixes) or 'none'}{where}"
        )
    widths = {name: side_width(module, config.side) for name, module in targets.items()}
    for name, width in widths.items():
        if width % config.block_size:
            valid = [b for b in range(2, 65) if all(w % b == 0 for w in widths.values())]
            raise ValueError(
                f"block_size={config.block_size} does not divide the {config.side} width {width} of {name}; "
                f"sizes that fit every matched layer: {', '.join(map(str, valid)) or 'none'}"
            )
        if wrong := [s for s in config.strides if width % (config.block_size * s)]:
            reach = f"block_size * {wrong[0]} = {config.block_size * wrong[0]}"
            raise ValueError(
                f"strides={config.strides}: {reach} does not divide the {config.side} width {width} of {name}"
            )
    return targets


def side_width(layer: nn.Linear, side: str) -> int:
    """Width of the side on which the blocks act."""
    return layer.in_features if side == "input" else layer.out_features


def _matches(name: str, config: CUAConfig) -> bool:
    if config.layers is not None and layer_number(name) not in config.layers:
        return False
    if isinstance(config.target_modules, str):
        return re.fullmatch(config.target_modules, name) is not None
    return any(_ends(name, suffix) for suffix in config.target_modules)


def _ends(name: str, suffix: str) -> bool:
    return f".{name}".endswith(f".{suffix}")


def layer_number(name: str) -> int | None:
    """Decoder layer of a dotted module name, or ``None``."""
    found = re.search(r"\.layers\.(\d+)\.", f".{name}")
    return int(found[1]) if found else None
