"""Saved adapters: a folder with ``adapter.safetensors`` (the parameters) and ``adapter.json`` (everything else).

Nothing is unpickled.  Loading checks the format version, the file's SHA-256, the base model, names, shapes, dtypes and
finiteness before the model is touched.
"""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as serialise_safetensors
from torch import Tensor, nn

from cua.adapter import Adapter, attach
from cua.config import CUAConfig, check_groups, matching_layers, theta_shape

FORMAT_VERSION = 1
PARAMETRISATION = "Q = (I - K/2)(I + K/2)^-1; theta = entries of K above the diagonal, row by row; y = Q x"
# What follows the name of a layer in the file: the components that its blocks turn, and their gains.  The name alone
# stands for theta.
_GROUPS, _GAIN = ".groups", ".log_gain"
_SAMPLES = 4096  # weight entries a module that enter the fingerprint


def model_label(model: nn.Module) -> str:
    """Hub id of a model, or the last part of a local path: no result and no file names a folder of this machine."""
    label = str(getattr(model, "name_or_path", "") or type(model).__name__)
    return Path(label).name if os.path.exists(label) or os.path.isabs(label) else label


def base_identity(model: nn.Module, module_names: list[str]) -> dict[str, str]:
    """What identifies the weights an adapter was trained on.

    Args:
        model: the model, with or without its adapter.
        module_names: the adapted linear layers.

    Returns:
        ``name`` (hub id, or the last part of a local path), ``architecture``, and ``weights_sha256``: SHA-256 over
        shapes and up to 4,096 evenly spaced entries of each adapted weight, rounded to bfloat16 so that one model
        loaded in float32 or bfloat16 has one identity.

    Raises:
        ValueError: if one of these weights is offloaded.
    """
    digest = hashlib.sha256()
    for name in module_names:
        layer = model.get_submodule(name)
        weight = getattr(layer, "base_layer", layer).weight
        if weight.is_meta:
            raise ValueError(f"{name}: its weights are offloaded, so the base model cannot be identified")
        flat = weight.detach().flatten()
        entries = flat[:: -(-flat.numel() // _SAMPLES)].to(torch.bfloat16).view(torch.int16).cpu()
        digest.update(repr((name, tuple(weight.shape))).encode() + entries.numpy().tobytes())
    return {
        "name": model_label(model),
        "architecture": type(model).__name__,
        "weights_sha256": digest.hexdigest(),
    }


def save(adapter: Adapter, folder: str | Path) -> Path:
    """Write an adapter; each file appears whole or not at all, the JSON file last.

    Args:
        adapter: attached to its model.
        folder: made if missing; an adapter already there is replaced.

    Returns:
        The folder.

    Raises:
        ValueError: for an adapter that was taken off or merged, and as :func:`base_identity`; nothing is written then.
    """
    adapter.check_attached()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = list(adapter.modules)
    tensors = {name: adapter.modules[name].theta.detach().cpu().contiguous() for name in names}
    tensors |= {name + _GROUPS: m.groups.cpu().int() for name, m in adapter.modules.items() if m.groups is not None}
    tensors |= {name + _GAIN: m.log_gain.detach().cpu() for name, m in adapter.modules.items() if adapter.config.gain}
    blob = serialise_safetensors(tensors)
    description = {
        "format_version": FORMAT_VERSION,
        "parametrisation": PARAMETRISATION,
        "config": asdict(adapter.config),
        "base_model": base_identity(adapter.model, names),
        "n_parameters": adapter.n_parameters,
        "safetensors_sha256": hashlib.sha256(blob).hexdigest(),
    }
    text = json.dumps(description, indent=2) + "\n"
    for name, content in (("adapter.safetensors", blob), ("adapter.json", text.encode())):
        partial = folder / f".{name}.partial"
        partial.write_bytes(content)
        os.replace(partial, folder / name)
    return folder


def load(model: nn.Module, folder: str | Path) -> Adapter:
    """Attach a saved adapter to its base model.

    Args:
        model: the base model, without an adapter on the same layers.
        folder: written by :func:`save`.

    Returns:
        The attached :class:`Adapter`, its parameters equal to the saved ones bit for bit.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if a file is damaged, of another format version, or made for another base model; if its
            parameters do not have the names, shapes and dtypes that the model needs, or hold NaN or infinity.
            The model is unchanged then.
    """
    folder = Path(folder)
    for name in ("adapter.json", "adapter.safetensors"):
        if not (folder / name).is_file():
            other = (folder / "adapter_config.json").is_file()
            hint = "; this is a checkpoint of PEFT, which cua.interop.from_peft reads" if other else ""
            raise FileNotFoundError(
                f"{folder / name} is missing; an adapter is adapter.json and adapter.safetensors{hint}"
            )
    try:
        description = json.loads((folder / "adapter.json").read_text())
        version = description["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'adapter.json'} is not an adapter description: {error!r}") from None
    if version != FORMAT_VERSION:
        raise ValueError(f"{folder}: format version {version!r}; this version of cua reads {FORMAT_VERSION}")
    try:
        parametrisation, config = description["parametrisation"], CUAConfig(**description["config"])
        expected_sha, base = description["safetensors_sha256"], description["base_model"]
        expected_weights, base_name = base["weights_sha256"], base["name"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'adapter.json'} is incomplete: {error}") from None
    except ValueError as error:
        raise ValueError(f"{folder / 'adapter.json'}: {error}") from None
    if parametrisation != PARAMETRISATION:
        raise ValueError(f"{folder}: parametrised as {parametrisation!r}, not {PARAMETRISATION!r}")

    blob = (folder / "adapter.safetensors").read_bytes()
    try:
        tensors = parse_safetensors(blob)
    except SafetensorError as error:
        raise ValueError(f"{folder / 'adapter.safetensors'} is truncated or damaged: {error}") from None
    if hashlib.sha256(blob).hexdigest() != expected_sha:
        raise ValueError(f"{folder / 'adapter.safetensors'} is not the file that adapter.json describes (SHA-256)")
    numbers = {name: tensor for name, tensor in tensors.items() if not name.endswith(_GROUPS)}
    groups = {name.removesuffix(_GROUPS): t.long() for name, t in tensors.items() if name.endswith(_GROUPS)} or None
    names = check_fit(model, config, numbers, folder, groups)
    identity = base_identity(model, names)
    if identity["weights_sha256"] != expected_weights:
        raise ValueError(f"{folder} was trained on {base_name}; the weights of this model, {identity['name']}, differ")
    return attach_with(model, config, numbers, groups)


def check_fit(
    model: nn.Module,
    config: CUAConfig,
    tensors: dict[str, Tensor],
    source: Path,
    groups: dict[str, Tensor] | None = None,
) -> list[str]:
    """Names of the layers that ``config`` and ``groups`` select in ``model``.

    Raises:
        ValueError: naming ``source``, unless there are such layers and ``tensors`` are finite parameters of the right
            names and shapes for them.
    """
    try:
        layers = matching_layers(model, config)
        if groups is not None:
            check_groups(groups, layers, config)
            layers = {name: layer for name, layer in layers.items() if name in groups}
    except ValueError as error:
        raise ValueError(f"{source} does not fit this model: {error}") from None
    expected = {name: theta_shape(layer, config, (groups or {}).get(name)) for name, layer in layers.items()}
    if config.gain:
        expected |= {name + _GAIN: shape[:1] for name, shape in expected.items()}
    for name in sorted(expected.keys() | tensors.keys()):
        theta = tensors.get(name)
        found = None if theta is None else tuple(theta.shape)
        if found != expected.get(name):
            raise ValueError(f"{source}: {name} has shape {found}; this model needs {expected.get(name)}")
        if theta.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{source}: {name} is {theta.dtype}; parameters are float32 or float64")
        if not torch.isfinite(theta).all():
            raise ValueError(f"{source}: the parameters of {name} hold NaN or infinity")
    return list(layers)


def attach_with(
    model: nn.Module, config: CUAConfig, tensors: dict[str, Tensor], groups: dict[str, Tensor] | None = None
) -> Adapter:
    """Attach and set the parameters to ``tensors``, which :func:`check_fit` has seen."""
    adapter = attach(model, config, groups)
    with torch.no_grad():
        for name, module in adapter.modules.items():
            module.theta.copy_(tensors[name])
            if config.gain:
                module.log_gain.copy_(tensors[name + _GAIN])
    return adapter
