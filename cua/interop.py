"""Exchange with PEFT's Orthogonal Finetuning (OFT), which is the same family of adapters.

PEFT's exact branch multiplies row vectors, ``y = W (x R)`` with ``R = (I - K_oft)(I + K_oft)^-1``.  Ours multiplies
column vectors, ``y = W (Q x)`` with ``Q = (I - K/2)(I + K/2)^-1``.  The two layers are equal if Q = R^T, that is

    K = 2 K_oft^T = -2 K_oft,

so an adapter moves across by a factor of -2 on its parameters, exactly.  PEFT's default, the truncated Neumann series
(``use_cayley_neumann=True``), is not orthogonal and has no counterpart here.
"""

from pathlib import Path

import torch
from peft import OFTConfig, PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cua.adapter import Adapter
from cua.checkpoint import attach_with, check_fit, model_label
from cua.config import CUAConfig

_PREFIX, _SUFFIX = "base_model.model.", ".oft_R.weight"


def to_peft(adapter: Adapter, folder: str | Path) -> Path:
    """Write an adapter as a PEFT OFT checkpoint, for ``PeftModel.from_pretrained(base_model, folder)``.

    Args:
        adapter: exact readout, input side.
        folder: made if missing.

    Returns:
        The folder, with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        ValueError: for another readout, the output side, strides other than (1,), gains or chosen groups of components,
            which OFT does not have.
    """
    config = adapter.config
    others = [f"the {config.readout} readout"] if config.readout != "exact" else []
    others += [f"the {config.side} side"] if config.side != "input" else []
    others += [f"strides {config.strides}"] if config.strides != (1,) else []
    if others:
        raise ValueError(
            f"PEFT's OFT is one exact block-wise rotation of the input; this adapter has {' and '.join(others)}"
        )
    if config.gain or any(module.groups is not None for module in adapter.modules.values()):
        raise ValueError("PEFT's OFT turns all components in their order, without gains; this adapter does not")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    OFTConfig(
        base_model_name_or_path=model_label(adapter.model),
        task_type="CAUSAL_LM",
        target_modules=list(adapter.modules),
        r=0,
        oft_block_size=adapter.config.block_size,
        use_cayley_neumann=False,
        module_dropout=0.0,
        inference_mode=True,
    ).save_pretrained(folder)
    tensors = {
        f"{_PREFIX}{name}{_SUFFIX}": (module.theta.detach().cpu() / -2).contiguous()
        for name, module in adapter.modules.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def from_peft(model: nn.Module, folder: str | Path) -> Adapter:
    """Attach a PEFT OFT checkpoint as a Cayley unitary adapter.

    Args:
        model: the base model.
        folder: written by ``PeftModel.save_pretrained`` or :func:`to_peft`.

    Returns:
        The attached :class:`Adapter`.

    Raises:
        FileNotFoundError: if the folder holds no configuration of PEFT, or no parameters.
        ValueError: if the checkpoint is not OFT, or uses an option that is not an exact block-wise Cayley rotation of
            the input (named in the message), or does not fit the model.  The model is unchanged then.
    """
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():  # PEFT would look for the name on the hub
        raise FileNotFoundError(f"{folder / 'adapter_config.json'} is missing; {folder} is no checkpoint of PEFT")
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, OFTConfig):
        raise ValueError(f"{folder} is a {config.peft_type} checkpoint, not OFT")
    wanted = {
        "use_cayley_neumann": False,
        "coft": False,
        "block_share": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }
    for option, value in wanted.items():
        if getattr(config, option) != value:
            raise ValueError(
                f"{folder} has {option}={getattr(config, option)!r}; only {value!r} is an exact rotation: "
                f"train with OFTConfig({option}={value!r})"
            )
    try:
        stored = load_file(folder / "adapter_model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder / 'adapter_model.safetensors'} is truncated or damaged: {error}") from None
    thetas = {
        key.removeprefix(_PREFIX).removesuffix(_SUFFIX): -2 * value.to(torch.promote_types(value.dtype, torch.float32))
        for key, value in stored.items()
    }
    if not thetas:
        raise ValueError(f"{folder} holds no OFT parameters")
    if not config.oft_block_size:
        raise ValueError(f"{folder} was made with r={config.r}; only checkpoints made with oft_block_size are read")
    wrapper = CUAConfig(target_modules=tuple(thetas), block_size=config.oft_block_size)
    check_fit(model, wrapper, thetas, folder)
    return attach_with(model, wrapper, thetas)
