import math

import pytest
import torch

from cua import READOUTS, CUAConfig, attach, skew
from cua.llm.evaluate import Perplexity, perplexity
from cua.llm.prefix import SplitModel
from cua.llm.train import TrainConfig, bound_k, teacher_states, train, window_order


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(97, (6, 16), generator=torch.Generator().manual_seed(3))


def thetas(adapter):
    return torch.cat([theta.detach().flatten() for theta in adapter.parameters()])


@pytest.mark.parametrize(("readout", "batch"), [("exact", 2), ("sign-constrained", 1)])
def test_training_is_the_plain_loop(make_llama, windows, readout, batch):
    config = TrainConfig(steps=20, learning_rate=0.05, batch=batch, warmup=5, seed=4)
    ours, plain = make_llama(), make_llama()
    adapter = attach(ours, CUAConfig(layers=(1, 2), readout=readout))
    losses = train(ours, adapter, windows, config)

    plain_adapter = attach(plain, CUAConfig(layers=(1, 2), readout=readout))
    optimizer = torch.optim.Adam(plain_adapter.parameters())
    expected = []
    for step, chosen in enumerate(window_order(len(windows), config)):
        warmup = (step + 1) / 5 if step < 5 else 1
        optimizer.param_groups[0]["lr"] = 0.05 * warmup * 0.5 * (1 + math.cos(math.pi * step / 20))
        loss = plain(input_ids=windows[chosen], labels=windows[chosen]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(thetas(adapter), thetas(plain_adapter), rtol=0, atol=1e-4)
    assert thetas(adapter).abs().max() > 0.1


def test_a_seed_fixes_every_bit_and_another_one_does_not(make_llama, windows):
    def run(seed):
        model = make_llama()
        adapter = attach(model, CUAConfig())
        return train(model, adapter, windows, TrainConfig(steps=8, seed=seed)), thetas(adapter)

    (losses, parameters), (again, same), (other_losses, other) = run(0), run(0), run(1)
    assert losses == again
    assert torch.equal(parameters, same)
    assert losses != other_losses
    assert not torch.equal(parameters, other)


@pytest.mark.parametrize("readout", READOUTS)
def test_loss_falls_on_a_sequence_to_memorise(llama, readout):
    sequence = torch.arange(12)[None]
    adapter = attach(llama, CUAConfig(("q_proj", "down_proj"), layers=(2, 3), block_size=8, readout=readout))
    losses = train(llama, adapter, sequence, TrainConfig(steps=50, learning_rate=0.1))
    assert losses[-1] < 0.5 * losses[0]


def test_training_touches_nothing_but_the_adapter(llama, windows):
    adapter = attach(llama, CUAConfig(layers=(2,)))
    before = {name: p.clone() for name, p in llama.named_parameters() if "theta" not in name}
    modules = dict(llama.named_modules())
    train(llama, adapter, windows, TrainConfig(steps=3))
    assert all(torch.equal(p, before[name]) for name, p in llama.named_parameters() if "theta" not in name)
    assert dict(llama.named_modules()) == modules
    assert all(p.grad is None for name, p in llama.named_parameters() if "theta" not in name)


def test_a_given_prefix_is_the_computed_one(make_llama, windows):
    config = TrainConfig(steps=6)
    given, computed = make_llama(), make_llama()
    adapters = [attach(model, CUAConfig(layers=(2,))) for model in (given, computed)]
    prefix = SplitModel(given, 2).prefix(windows)
    assert train(given, adapters[0], windows, config, prefix=prefix) == train(computed, adapters[1], windows, config)


def test_a_lower_split_changes_nothing_and_a_higher_one_is_refused(make_llama, windows):
    config = TrainConfig(steps=6)
    models = [make_llama() for _ in range(3)]
    adapters = [attach(model, CUAConfig(layers=(2,))) for model in models]
    split = SplitModel(models[0], 1)
    lower = train(models[0], adapters[0], windows, config, split=split, prefix=split.prefix(windows))
    assert lower == train(models[1], adapters[1], windows, config)
    with pytest.raises(ValueError, match="a split at layer 3 leaves the adapter of layer 2 below it"):
        train(models[2], adapters[2], windows, config, split=SplitModel(models[2], 3))


def test_the_first_loss_is_that_of_the_base_model(frozen, windows):
    base = perplexity(frozen, windows)
    adapter = attach(frozen, CUAConfig())
    config = TrainConfig(steps=2)
    losses = train(frozen, adapter, windows, config)
    assert losses[0] == pytest.approx(base.nll[window_order(6, config)[0, 0]] / 15, rel=1e-6)


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.3, 2.0)])
def test_distillation_is_the_plain_loop(make_llama, windows, move, weight, temperature):
    """Against log-softmaxes of whole logits; the teacher is the same model with another adapter."""
    ours, plain, teacher = make_llama(), make_llama(), make_llama().requires_grad_(False)
    move(attach(teacher, CUAConfig(("o_proj",))))
    states = teacher_states(teacher, windows, dtype=torch.float32)
    config = TrainConfig(steps=10, learning_rate=0.05, batch=2, warmup=0, distillation=weight, temperature=temperature)
    adapter = attach(ours, CUAConfig(layers=(1, 2)))
    losses = train(ours, adapter, windows, config, teacher=states)

    plain_adapter = attach(plain, CUAConfig(layers=(1, 2)))
    optimizer = torch.optim.Adam(plain_adapter.parameters())
    expected = []
    for step, chosen in enumerate(window_order(len(windows), config)):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 10))
        output = plain(input_ids=windows[chosen], labels=windows[chosen])
        student = (output.logits[:, :-1] / temperature).log_softmax(-1).flatten(0, 1)
        target = (teacher(windows[chosen]).logits[:, :-1] / temperature).log_softmax(-1).flatten(0, 1)
        kl = torch.nn.functional.kl_div(student, target, reduction="batchmean", log_target=True)
        loss = (1 - weight) * output.loss + weight * temperature**2 * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(thetas(adapter), thetas(plain_adapter), rtol=0, atol=1e-3)
    assert thetas(adapter).abs().max() > 0.1


def test_a_model_learns_from_nobody_when_it_is_its_own_teacher(frozen, windows):
    adapter = attach(frozen, CUAConfig())
    states = teacher_states(frozen, windows, dtype=torch.float32)
    losses = train(frozen, adapter, windows, TrainConfig(steps=3, distillation=1.0), teacher=states)
    assert losses == pytest.approx([0, 0, 0], abs=1e-5)


def test_a_cached_teacher_has_its_own_logits(frozen, windows):
    states = teacher_states(frozen, windows)
    assert states.dtype == torch.bfloat16
    logits = frozen(windows).logits
    torch.testing.assert_close(frozen.lm_head(states.float()), logits, rtol=0, atol=0.02 * logits.abs().max().item())
    exact = teacher_states(frozen, windows, dtype=torch.float32)
    torch.testing.assert_close(frozen.lm_head(exact), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "teacher", "message"),
    [
        ({"distillation": 0.5}, None, "distillation=0.5, but no teacher is given"),
        ({}, torch.zeros(6, 16, 32), "distillation=0.0, but a teacher is given"),
        ({"distillation": 0.5}, torch.zeros(6, 15, 32), r"\(6, 15, 32\); these windows need \(6, 16, 32\)"),
    ],
    ids=str,
)
def test_a_teacher_that_does_not_belong_is_refused(frozen, windows, options, teacher, message):
    adapter = attach(frozen, CUAConfig())
    with pytest.raises(ValueError, match=message):
        train(frozen, adapter, windows, TrainConfig(steps=1, **options), teacher=teacher)


def k_norms(adapter):
    b = adapter.config.block_size
    return [torch.linalg.matrix_norm(skew(theta.detach().double(), b), 2) for theta in adapter.parameters()]


@pytest.mark.parametrize("bound", [0.01, 0.8, 1.9])
@pytest.mark.parametrize("options", [{}, {"block_size": 2}, {"block_size": 16}, {"strides": (1, 4)}], ids=str)
def test_bound_k(llama, move, options, bound):
    adapter = move(attach(llama, CUAConfig(**options)), size=bound)
    with torch.no_grad():
        adapter.parameters()[0][0] = 0
    before, norms = [theta.detach().clone() for theta in adapter.parameters()], k_norms(adapter)
    bound_k(adapter, bound)
    inside = 0
    for old, new, norm, after in zip(before, adapter.parameters(), norms, k_norms(adapter), strict=True):
        small = norm <= bound * (1 - 1e-6)
        assert torch.equal(new[small], old[small])
        assert after.max() <= bound * (1 + 1e-6)
        torch.testing.assert_close(after[~small], torch.full_like(after[~small], bound), rtol=1e-6, atol=0)
        torch.testing.assert_close(new[~small], old[~small] * (bound / norm[~small, None]).float(), rtol=1e-5, atol=0)
        inside += small.sum().item()
        assert not small.all()
    assert inside > 0


def test_training_keeps_the_bound(make_llama, windows):
    def run(bound):
        model = make_llama()
        adapter = attach(model, CUAConfig(layers=(1, 2)))
        config = TrainConfig(steps=20, learning_rate=0.1, warmup=2, max_k_norm=bound)
        return train(model, adapter, windows, config), torch.cat(k_norms(adapter)), thetas(adapter)

    (free_losses, free, parameters), (losses, bounded, _) = run(None), run(0.3)
    assert free.max() > 0.6
    assert 0.3 * (1 - 1e-6) < bounded.max() <= 0.3 * (1 + 1e-6)
    assert losses[0] == free_losses[0]
    assert losses != free_losses
    unreached_losses, _, unreached = run(100.0)
    assert unreached_losses == free_losses
    assert torch.equal(unreached, parameters)


def test_adapters_that_are_trained_together_learn_what_one_would(make_llama, windows):
    """Two halves of one placement are that placement; sides may differ; each keeps the bound."""

    def run(*configs, **options):
        model = make_llama()
        adapters = [attach(model, config) for config in configs]
        config = TrainConfig(steps=12, learning_rate=0.1, warmup=2, **options)
        losses = train(model, adapters if len(adapters) > 1 else adapters[0], windows, config)
        return losses, torch.cat([thetas(adapter) for adapter in adapters]), adapters

    losses, parameters, _ = run(CUAConfig(layers=(1, 2)))
    halves, joined, _ = run(CUAConfig(layers=(2,)), CUAConfig(layers=(1,)))
    assert halves == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(joined, torch.cat(parameters.chunk(2)[::-1]), rtol=0, atol=1e-4)
    _, _, adapters = run(CUAConfig(layers=(2,)), CUAConfig(("up_proj",), side="output"), max_k_norm=0.3)
    assert all(0.1 < torch.cat(k_norms(adapter)).max() <= 0.3 * (1 + 1e-6) for adapter in adapters)


def test_no_windows_are_refused(frozen, windows):
    adapter = attach(frozen, CUAConfig(layers=(2,)))
    with pytest.raises(ValueError, match="no windows to train on: the text is shorter"):
        train(frozen, adapter, windows[:0], TrainConfig(steps=1))
    with pytest.raises(ValueError, match="no windows to measure on: the text is shorter"):
        perplexity(frozen, windows[:0])


def test_none_to_train_is_refused(frozen, windows):
    with pytest.raises(ValueError, match="no adapter to train"):
        train(frozen, [], windows, TrainConfig(steps=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_k_norm": 0.0}, "max_k_norm=0.0: above 0, or None for no bound"),
        ({"max_k_norm": -1.0}, "max_k_norm=-1.0"),
        ({"steps": 0}, "steps and batch are at least 1"),
        ({"batch": 0}, "steps and batch are at least 1"),
        ({"warmup": -1}, "warmup at least 0"),
        ({"learning_rate": 0.0}, "learning_rate above 0"),
        ({"distillation": -0.1}, "distillation is a weight from 0 to 1"),
        ({"distillation": 1.1}, "distillation is a weight from 0 to 1"),
        ({"distillation": 0.5, "temperature": 0.0}, "temperature above 0"),
    ],
    ids=str,
)
def test_train_config_names_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"steps": 1} | options)


def test_training_without_warmup(llama, windows):
    adapter = attach(llama, CUAConfig(layers=(3,)))
    assert len(train(llama, adapter, windows, TrainConfig(steps=2, warmup=0))) == 2


@pytest.mark.parametrize(
    ("n_windows", "steps", "batch"), [(6, 12, 1), (6, 6, 2), (5, 4, 3), (7, 3, 1), (3, 2, 5), (1, 4, 1)]
)
def test_each_epoch_draws_each_window_once(n_windows, steps, batch):
    order = window_order(n_windows, TrainConfig(steps=steps, batch=batch))
    assert order.shape == (steps, batch)
    for epoch in order.flatten().split(n_windows):
        assert len(set(epoch.tolist())) == len(epoch)
        assert set(epoch.tolist()) <= set(range(n_windows))


def test_epochs_and_seeds_differ():
    first, second = window_order(50, TrainConfig(steps=100)).flatten().split(50)
    assert not torch.equal(first, second)
    assert not torch.equal(first, window_order(50, TrainConfig(steps=50, seed=1)).flatten())


def test_drawing_an_order_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    window_order(10, TrainConfig(steps=10))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("adapted", [False, True])
def test_perplexity_is_that_of_transformers(frozen, windows, move, adapted):
    if adapted:
        move(attach(frozen, CUAConfig()))
    with torch.no_grad():
        losses = [frozen(input_ids=row[None], labels=row[None]).loss.item() for row in windows]
    measured = perplexity(frozen, windows)
    assert measured.value == pytest.approx(math.exp(sum(losses) / 6), rel=1e-5)
    assert [nll / 15 for nll in measured.nll] == pytest.approx(losses, rel=1e-5)
    assert measured.tokens == 6 * 15


@pytest.mark.parametrize("layer", range(5))
def test_perplexity_from_a_prefix_agrees(frozen, windows, move, layer):
    move(attach(frozen, CUAConfig()))
    split = SplitModel(frozen, layer)
    from_prefix = perplexity(frozen, windows, split=split, prefix=split.prefix(windows))
    assert from_prefix.nll == pytest.approx(perplexity(frozen, windows).nll, rel=1e-6)


def test_perplexity_of_the_embedded_model(embedded, sentence):
    model, _ = embedded
    with torch.no_grad():
        loss = model(input_ids=sentence, labels=sentence).loss.item()
    assert perplexity(model, sentence).value == pytest.approx(math.exp(loss), rel=1e-4)


def test_perplexity_states_its_terms():
    measured = Perplexity(nll=(2046.0, 4092.0), window=1024, bos=True)
    assert measured.tokens == 2046
    assert measured.value == pytest.approx(math.exp(3))
    assert str(measured) == "perplexity 20.09 (2,046 tokens, windows of 1,024, BOS)"
    assert "no BOS" in str(Perplexity(nll=(1.0,), window=2, bos=False))


def test_a_prefix_of_another_layer_is_refused_before_any_work(make_llama, windows):
    model = make_llama()
    adapter = attach(model, CUAConfig(layers=(2,)))
    wrong = SplitModel(model, 1).prefix(windows)
    with pytest.raises(ValueError, match="another layer"):
        train(model, adapter, windows, TrainConfig(steps=1), prefix=wrong)
    assert not adapter.parameters()[0].any()
    with pytest.raises(ValueError, match="another layer"):
        perplexity(model, windows, split=SplitModel(model, 2), prefix=wrong)
