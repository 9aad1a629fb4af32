"""A tiny random Llama for nearly everything, the embedded model for the rest."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs the hub; without a network each attempt would wait for a minute

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cua import Adapter, cayley, n_parameters, skew
from cua.llm.models import load_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser

collect_ignore = ["rounded_otherwise.py"]  # importing it makes torch round otherwise
VOCABULARY = 97


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors gain nothing from threads, and on a busy machine lose a factor of ten to waiting for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def make_llama() -> Callable[..., LlamaForCausalLM]:
    """Random 4-layer Llamas; the weights are large enough for the logits to spread over several units."""

    def make(seed: int = 0, **options) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        settings = {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.2,
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": None,
        }
        return LlamaForCausalLM(LlamaConfig(**settings | options)).eval()

    return make


@pytest.fixture
def llama(make_llama) -> LlamaForCausalLM:
    return make_llama()


@pytest.fixture
def frozen(llama) -> LlamaForCausalLM:
    return llama.requires_grad_(False)


@pytest.fixture
def tied_llama(make_llama) -> LlamaForCausalLM:
    return make_llama(tie_word_embeddings=True)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def move() -> Callable[..., Adapter]:
    """Give an adapter random parameters."""

    def move(adapter: Adapter, size: float = 0.3, seed: int = 0) -> Adapter:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for theta in adapter.parameters():
                theta.copy_(size * torch.randn(theta.shape, generator=generator, dtype=theta.dtype))
        return adapter

    return move


@pytest.fixture
def snapshot() -> Callable[[nn.Module], tuple]:
    """The very modules and parameters of a model, their requires_grad flags, and how often each was written to."""

    def snapshot(model: nn.Module) -> tuple:
        return (
            [(name, module) for name, module in model.named_modules()],
            [(name, id(p), p.requires_grad, p._version) for name, p in model.named_parameters()],
        )

    return snapshot


@pytest.fixture
def make_tokenizer() -> Callable[[bool], PreTrainedTokenizerFast]:
    """One token a word, "w1" to "w96"; the BOS token "<s>" is number 0."""

    def make(bos: bool) -> PreTrainedTokenizerFast:
        vocabulary = {"<s>": 0} | {f"w{i}": i for i in range(1, VOCABULARY)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if bos:
            tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")

    return make


@pytest.fixture(scope="session")
def embedded():
    """The embedded model and its tokenizer, shared: leave the model as it was."""
    return load_model()


@pytest.fixture(scope="session")
def sentence(embedded) -> Tensor:
    _, tokenizer = embedded
    return tokenizer("The Cayley transform maps skew-symmetric matrices to rotations.", return_tensors="pt").input_ids


@pytest.fixture(scope="session")
def rotations() -> Callable[..., np.ndarray]:
    """Random blocks Q, ``(*shape, b, b)``, with |K|_2 equal to ``norm``, a number or one for each block."""

    def rotations(*shape: int, b: int = 4, norm: float | np.ndarray = 1.0, seed: int = 0) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        k = skew(torch.randn(*shape, n_parameters(b), generator=generator, dtype=torch.float64), b)
        scale = torch.as_tensor(norm) / torch.linalg.matrix_norm(k, 2)
        return cayley(scale[..., None, None] * k).numpy()

    return rotations


@pytest.fixture(scope="module")
def script() -> Callable[[str], ModuleType]:
    """A script of the book's folder, which is no package, as a module."""

    def script(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "book" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return script


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Headless Chromium, or Chrome; one that does not call home."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium or Chrome on this machine")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=quiet)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def marrakesh():
    """IBM's 156-qubit Heron r2, with its calibration of one day.  Imported here: most tests need no Qiskit."""
    from qiskit_ibm_runtime.fake_provider import FakeMarrakesh

    return FakeMarrakesh()


@pytest.fixture(scope="session")
def marrakesh_noise(marrakesh):
    """Takes some seconds, hence shared."""
    from cua.quantum.noise import DeviceNoise

    return DeviceNoise(marrakesh)


@pytest.fixture(scope="session")
def mesh():
    """Four qubits, all coupled; every gate has another error, and measuring 0 and 1 goes wrong unequally often."""
    from qiskit.providers.fake_provider import GenericBackendV2
    from qiskit.transpiler import CouplingMap, InstructionProperties

    backend = GenericBackendV2(4, ["id", "x", "sx", "rz", "cz"], coupling_map=CouplingMap.from_full(4), seed=0)
    for qubit in range(4):
        properties = InstructionProperties(duration=1e-6, error=0.03)
        properties.prob_meas1_prep0, properties.prob_meas0_prep1 = 0.01 + 0.01 * qubit, 0.06 + 0.005 * qubit
        backend.target.update_instruction_properties("measure", (qubit,), properties)
    return backend


@pytest.fixture(scope="session")
def mesh_noise(mesh):
    from cua.quantum.noise import DeviceNoise

    return DeviceNoise(mesh)


@pytest.fixture(scope="session")
def readout_only():
    """Noise of five qubits with perfect gates and unequal, asymmetric readout errors."""
    from qiskit.providers.fake_provider import GenericBackendV2
    from qiskit.transpiler import InstructionProperties

    from cua.quantum.noise import DeviceNoise

    backend = GenericBackendV2(5, ["id", "x", "sx", "rz", "cz"], noise_info=False)
    for qubit in range(5):
        properties = InstructionProperties(duration=1e-6, error=0.1)
        properties.prob_meas1_prep0, properties.prob_meas0_prep1 = 0.02 * qubit + 0.01, 0.15 - 0.01 * qubit
        backend.target.update_instruction_properties("measure", (qubit,), properties)
    return DeviceNoise(backend)
