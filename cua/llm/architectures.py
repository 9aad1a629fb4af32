"""Published architectures, built without weights: to count blocks, parameters and bytes of models that do not fit here.

Numbers are those of each model's ``config.json`` on the hub.  A model is built on PyTorch's meta device, which stores
no weights, by the same classes that would load it, so what is counted is the model and not a formula.
"""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear maps of a decoder layer, in the order in which a token meets them."""


def _llama(width: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int, tied: bool) -> dict:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


ARCHITECTURES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": _llama(576, 30, 9, 3, 1536, 49152, tied=True),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _llama(960, 32, 15, 5, 2560, 49152, tied=True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _llama(2048, 24, 32, 32, 8192, 49152, tied=True),
    "meta-llama/Llama-3.1-8B-Instruct": _llama(4096, 32, 32, 8, 14336, 128256, tied=False),
    "meta-llama/Llama-3.1-70B-Instruct": _llama(8192, 80, 64, 8, 28672, 128256, tied=False),
    "meta-llama/Llama-3.1-405B-Instruct": _llama(16384, 126, 128, 8, 53248, 128256, tied=False),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": _llama(4096, 32, 32, 8, 14336, 32000, tied=False)
    | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
    "Qwen/Qwen3-235B-A22B": _llama(4096, 94, 64, 4, 12288, 151936, tied=False)
    | {
        "model_type": "qwen3_moe",
        "head_dim": 128,
        "moe_intermediate_size": 1536,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    },
}
"""Name on the hub -> its configuration: dense models of the Llama family, and two mixtures of experts."""


def meta_model(name: str) -> PreTrainedModel:
    """A published model without weights.

    Args:
        name: one of :data:`ARCHITECTURES`.

    Returns:
        The model on the meta device, frozen: shapes of parameters, no values.

    Raises:
        ValueError: for a name that is not there.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
    config = AutoConfig.for_model(**ARCHITECTURES[name])
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).requires_grad_(False)


def active_parameters(model: PreTrainedModel) -> int:
    """Parameters that one token passes through: all but those of the experts that it is not sent to."""
    routed = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    config = model.config
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    used = getattr(config, "num_experts_per_tok", None) or 1
    return model.num_parameters() - routed * (experts - used) // experts
