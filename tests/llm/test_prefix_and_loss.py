import pytest
import torch
from torch import nn

from cua import CUAConfig, attach
from cua.llm import loss as loss_module
from cua.llm.loss import distillation_kl, next_token_nll
from cua.llm.prefix import SplitModel


def final_hidden(model, ids):
    with torch.no_grad():
        return model.model(ids).last_hidden_state


@pytest.mark.parametrize("chunk", [1, 7, 31, 32, 33, 256])
def test_loss_and_gradient_by_chunks(frozen, ids, monkeypatch, chunk):
    """2 x 16 = 32 rows: chunks of one row, several, with a rest, exactly all, and more than there are."""
    monkeypatch.setattr(loss_module, "CHUNK", chunk)
    ours, plain = (final_hidden(frozen, ids).requires_grad_() for _ in range(2))
    nll = next_token_nll(ours, frozen.lm_head, ids)
    logits = frozen.lm_head(plain[:, :-1]).flatten(0, 1)
    expected = nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(nll, expected, rtol=1e-5, atol=0)
    (3 * nll).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.grad[:, -1], torch.zeros_like(ours.grad[:, -1])), "the last position predicts nothing"


@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
@pytest.mark.parametrize("chunk", [1, 7, 32, 256])
def test_distillation_and_gradient_by_chunks(frozen, ids, monkeypatch, chunk, temperature):
    monkeypatch.setattr(loss_module, "CHUNK", chunk)
    ours, plain = (final_hidden(frozen, ids).requires_grad_() for _ in range(2))
    teacher = final_hidden(frozen, ids.flip(1))
    kl = distillation_kl(ours, frozen.lm_head, teacher, temperature)
    log_q, log_p = ((frozen.lm_head(h[:, :-1]) / temperature).log_softmax(-1).flatten(0, 1) for h in (plain, teacher))
    expected = temperature**2 * nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    torch.testing.assert_close(kl, expected, rtol=1e-5, atol=0)
    (3 * kl).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours.grad[:, -1], torch.zeros_like(ours.grad[:, -1])), "the last position predicts nothing"


def test_loss_is_that_of_transformers(frozen, ids):
    expected = frozen(input_ids=ids, labels=ids).loss * ids[:, 1:].numel()
    nll = next_token_nll(final_hidden(frozen, ids), frozen.lm_head, ids)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, expected, rtol=1e-5, atol=0)


def test_loss_of_the_embedded_model_is_that_of_transformers(embedded, sentence):
    model, _ = embedded
    with torch.no_grad():
        expected = model(input_ids=sentence, labels=sentence).loss * (sentence.numel() - 1)
        split = SplitModel(model, 15)
        nll = split.nll(split.below(sentence), sentence)
    torch.testing.assert_close(nll, expected, rtol=1e-5, atol=0)


def test_gradient_in_float64(make_llama, ids):
    model = make_llama().double().requires_grad_(False)
    ours, plain = (final_hidden(model, ids).requires_grad_() for _ in range(2))
    next_token_nll(ours, model.lm_head, ids).backward()
    logits = model.lm_head(plain[:, :-1]).flatten(0, 1)
    nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum").backward()
    assert ours.grad.dtype == torch.float64
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-5, atol=1e-6)


def test_loss_in_bfloat16_is_summed_in_float32(make_llama, ids):
    exact = make_llama().requires_grad_(False)
    narrow = make_llama().to(torch.bfloat16).requires_grad_(False)
    hidden = final_hidden(exact, ids)
    rounded = hidden.bfloat16().requires_grad_()
    nll = next_token_nll(rounded, narrow.lm_head, ids)
    nll.backward()
    assert nll.dtype == torch.float32
    assert rounded.grad.dtype == torch.bfloat16
    torch.testing.assert_close(nll, next_token_nll(hidden, exact.lm_head, ids), rtol=1e-2, atol=0)


def test_very_large_logits_do_not_overflow(frozen, ids):
    nll = next_token_nll(1e4 * final_hidden(frozen, ids), frozen.lm_head, ids)
    assert torch.isfinite(nll)
    assert nll > 0


def test_a_head_without_gradient_is_refused(llama, frozen, ids):
    hidden = final_hidden(frozen, ids)
    trainable = nn.Linear(32, 97, bias=False)
    biased = nn.Linear(32, 97).requires_grad_(False)
    attach(frozen, CUAConfig(("lm_head",)))
    for head in trainable, biased, frozen.lm_head:
        with pytest.raises(ValueError, match=r"must be a frozen nn\.Linear without bias"):
            distillation_kl(hidden, head, hidden, 1.0)
        with pytest.raises(ValueError, match=r"must be a frozen nn\.Linear without bias"):
            next_token_nll(hidden, head, ids)
    with pytest.raises(ValueError, match=r"this one is not frozen; call model\.requires_grad_\(False\) first"):
        next_token_nll(hidden, trainable, ids)


@pytest.mark.parametrize("layer", range(5))
def test_split_model_is_the_whole_model(frozen, ids, move, layer):
    move(attach(frozen, CUAConfig()))
    expected = frozen(input_ids=ids, labels=ids).loss * ids[:, 1:].numel()
    split = SplitModel(frozen, layer)
    hidden = split.below(ids)
    assert hidden.shape == (*ids.shape, 32)
    torch.testing.assert_close(split.nll(hidden, ids), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("layer", range(5))
def test_what_enters_a_layer_is_what_transformers_reports(frozen, ids, layer):
    """hidden_states[l] of transformers is the input of layer l; its last entry has passed the final norm."""
    states = frozen(ids, output_hidden_states=True).hidden_states
    hidden = SplitModel(frozen, layer).below(ids)
    expected, ours = states[layer], frozen.model.norm(hidden) if layer == 4 else hidden
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer", range(5))
def test_splitting_leaves_the_model_alone(frozen, ids, snapshot, layer):
    before, logits = snapshot(frozen), frozen(ids).logits
    split = SplitModel(frozen, layer)
    split.nll(split.below(ids), ids)
    assert snapshot(frozen) == before
    assert len(frozen.model.layers) == 4
    assert torch.equal(frozen(ids).logits, logits)


@pytest.mark.parametrize("layer", [-1, 5])
def test_no_such_layer(frozen, layer):
    with pytest.raises(ValueError, match=f"layer {layer}: this model has 4 decoder layers, so 0 to 4"):
        SplitModel(frozen, layer)


@pytest.mark.parametrize("layer", range(4))
def test_an_adapter_leaves_what_enters_its_layer_unchanged(frozen, ids, move, layer):
    before = SplitModel(frozen, layer).below(ids)
    adapter = move(attach(frozen, CUAConfig(layers=(layer,))))
    assert adapter.first_layer == layer
    assert torch.equal(SplitModel(frozen, layer).below(ids), before)
    assert not torch.allclose(SplitModel(frozen, layer + 1).below(ids), SplitModel(frozen, 0).below(ids))


@pytest.mark.parametrize("layer", range(4))
def test_gradient_from_the_prefix_is_that_of_the_whole_model(frozen, ids, move, layer):
    adapter = move(attach(frozen, CUAConfig(layers=(layer,))))
    (theta,) = adapter.parameters()
    split = SplitModel(frozen, layer)
    split.nll(split.below(ids), ids).backward()
    ours, theta.grad = theta.grad, None
    (frozen(input_ids=ids, labels=ids).loss * ids[:, 1:].numel()).backward()
    assert theta.grad.abs().max() > 1e-2
    torch.testing.assert_close(ours, theta.grad, rtol=1e-4, atol=1e-4)


def test_prefix_of_many_windows_is_that_of_each(frozen, ids):
    split = SplitModel(frozen, 2)
    prefix = split.prefix(ids)
    assert not prefix.requires_grad
    torch.testing.assert_close(prefix, split.below(ids), rtol=0, atol=1e-5)


def test_a_prefix_has_the_models_precision(make_llama, ids):
    assert SplitModel(make_llama().bfloat16(), 2).prefix(ids).dtype == torch.bfloat16


def test_a_prefix_is_accepted_for_its_own_windows_only(frozen, make_llama, ids):
    split = SplitModel(frozen, 2)
    prefix = split.prefix(ids)
    split.check_prefix(prefix, ids)
    split.check_prefix(prefix * 1.001, ids)  # rounding, of bfloat16 for example
    for wrong in (
        SplitModel(frozen, 1).prefix(ids),
        SplitModel(frozen, 3).prefix(ids),
        SplitModel(make_llama(seed=1), 2).prefix(ids),
        prefix.flip(0),
    ):
        with pytest.raises(ValueError, match="another layer, other windows or another model"):
            split.check_prefix(wrong, ids)
    for wrong in (prefix[:1], prefix[:, :-1], prefix[..., :-1]):
        with pytest.raises(ValueError, match=r"prefix has shape .*; these windows need \(2, 17, 32\)"):
            split.check_prefix(wrong, ids)
