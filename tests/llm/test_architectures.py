import pytest

from cua import CUAConfig, attach
from cua.llm.architectures import ARCHITECTURES, active_parameters, meta_model

# As stated with each model: parameters in all, and of mixtures the billions that are active.
PUBLISHED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.1-405B-Instruct": 405_853_388_800,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
}
ACTIVE = {"mistralai/Mixtral-8x7B-Instruct-v0.1": 12.9e9, "Qwen/Qwen3-235B-A22B": 22e9}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_without_weights_has_the_published_number_of_parameters(name):
    model = meta_model(name)
    assert model.num_parameters() == PUBLISHED[name]
    assert all(parameter.is_meta for parameter in model.parameters())
    assert active_parameters(model) == pytest.approx(ACTIVE.get(name, PUBLISHED[name]), rel=0.01)


def test_the_embedded_model_is_one_of_them(embedded):
    shapes = {name: p.shape for name, p in embedded[0].named_parameters()}
    model = meta_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert {name: p.shape for name, p in model.named_parameters()} == shapes


def test_the_papers_adapter_is_counted_at_full_size():
    model = meta_model("meta-llama/Llama-3.1-8B-Instruct")
    adapter = attach(model, CUAConfig(target_modules=("v_proj",), layers=(15,), block_size=4))
    assert adapter.n_parameters == 6144
    assert [len(module.theta) for module in adapter.modules.values()] == [1024]
    assert all(theta.is_meta for theta in adapter.parameters())


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match=r"unknown architecture 'gpt-2'; known: HuggingFaceTB"):
        meta_model("gpt-2")
