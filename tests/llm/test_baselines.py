import pytest
import torch
from peft import IA3Config, LoraConfig, OFTConfig, VeraConfig

from cua import CUAConfig, attach
from cua.llm.baselines import PeftAdapter
from cua.llm.train import TrainConfig, train

LORA = {"r": 1, "lora_alpha": 1, "target_modules": ["v_proj"]}


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(97, (6, 16), generator=torch.Generator().manual_seed(3))


def test_lora_trains_alone_and_comes_off(llama, windows, ids):
    before = {name: p.clone() for name, p in llama.named_parameters()}
    logits, modules = llama(ids).logits, [name for name, _ in llama.named_modules()]
    adapter = PeftAdapter(llama, LoraConfig(**LORA, layers_to_transform=[2, 3]))
    assert adapter.n_parameters == 2 * (32 + 16)
    assert adapter.first_layer == 2
    assert torch.equal(llama(ids).logits, logits), "LoRA starts at zero"
    losses = train(llama, adapter, windows, TrainConfig(steps=30, learning_rate=0.05))
    assert losses[-1] < losses[0]
    assert not torch.allclose(llama(ids).logits, logits, atol=0.1)
    adapter.detach()
    assert torch.equal(llama(ids).logits, logits)
    assert [name for name, _ in llama.named_modules()] == modules
    assert all(torch.equal(p, before[name]) for name, p in llama.named_parameters())


def test_a_saved_adapter_comes_back(make_llama, windows, ids, tmp_path):
    model = make_llama()
    adapter = PeftAdapter(model, LoraConfig(**LORA))
    train(model, adapter, windows, TrainConfig(steps=3, warmup=0, learning_rate=0.05))
    adapter.save(tmp_path / "lora")
    files = sorted(path.name for path in (tmp_path / "lora").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    fresh = make_llama()
    before = fresh(ids).logits
    loaded = PeftAdapter.load(fresh, tmp_path / "lora")
    assert loaded.n_parameters == adapter.n_parameters
    assert torch.equal(fresh(ids).logits, model(ids).logits)
    loaded.detach()
    assert torch.equal(fresh(ids).logits, before)


def test_seeds_are_of_the_adapter_and_of_nothing_else(make_llama):
    state = torch.get_rng_state()
    first, again, other = (
        torch.cat([p.flatten() for p in PeftAdapter(make_llama(), LoraConfig(**LORA), seed).parameters()])
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.set_rng_state(state)
    model = make_llama()
    drawn = torch.get_rng_state()
    PeftAdapter(model, LoraConfig(**LORA), 5)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_seeds_change_the_frozen_matrices_of_vera_and_a_saved_one_brings_its_own_back(make_llama, ids, tmp_path):
    outputs = []
    for seed in (0, 0, 1):
        model = make_llama()
        adapter = PeftAdapter(model, VeraConfig(r=8, target_modules=["v_proj"], save_projection=False), seed)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.fill_(0.5)
            outputs.append(model(ids).logits)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-3)
    adapter.save(tmp_path)
    fresh = make_llama()
    PeftAdapter.load(fresh, tmp_path)
    assert torch.equal(fresh(ids).logits, outputs[2])


def test_pefts_oft_and_ours_learn_the_same(make_llama, windows):
    """K of PEFT is -K/2 of ours, so half the learning rate makes the same steps."""
    theirs, ours = make_llama(), make_llama()
    oft = PeftAdapter(theirs, OFTConfig(target_modules=["v_proj"], r=0, oft_block_size=4, use_cayley_neumann=False))
    cayley = attach(ours, CUAConfig())
    schedule = {"steps": 10, "warmup": 0}
    expected = train(ours, cayley, windows, TrainConfig(**schedule, learning_rate=0.04))
    assert train(theirs, oft, windows, TrainConfig(**schedule, learning_rate=0.02)) == pytest.approx(expected, rel=1e-4)
    for a, b in zip(oft.parameters(), cayley.parameters(), strict=True):
        torch.testing.assert_close(-2 * a, b, rtol=0, atol=1e-3)


def test_a_bound_is_for_cayley_blocks(llama, windows):
    adapter = PeftAdapter(llama, LoraConfig(**LORA))
    with pytest.raises(ValueError, match=r"max_k_norm=1\.9 bounds Cayley blocks; this adapter is of PEFT"):
        train(llama, adapter, windows, TrainConfig(steps=1, max_k_norm=1.9))


def test_entries_that_are_not_kept_do_not_move(llama, windows):
    adapter = PeftAdapter(llama, IA3Config(target_modules=["v_proj"], feedforward_modules=[]))
    everything = adapter.n_parameters
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in adapter.modules.items()}
    name = list(masks)[1]
    masks[name][2] = masks[name][5] = True
    adapter.keep(masks)
    assert (everything, adapter.n_parameters) == (4 * 16, 2)
    train(llama, adapter, windows, TrainConfig(steps=5, learning_rate=0.05))
    for module, parameter in adapter.modules.items():
        assert torch.equal(parameter != 1, masks[module])
    with pytest.raises(ValueError, match="masks need the names and shapes"):
        adapter.keep({name: masks[name]})
