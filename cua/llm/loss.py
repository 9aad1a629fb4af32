"""Next-token loss from hidden states, without ever holding all logits at once.

A window of T tokens has T x V logits (SmolLM2: 49,152 columns, 200 MB in float32 for 1,024 tokens), and the textbook
loop keeps several copies of them.  Here rows are taken in chunks, and the gradient with respect to the hidden states is
computed while the chunk's logits are at hand, so the backward pass costs nothing more.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

CHUNK = 256  # rows of logits at a time: 50 MB for a vocabulary of 49,152


class _SummedNLL(torch.autograd.Function):
    """Sum of -log softmax(W h)[target] over rows, differentiable in ``h`` alone (the head is frozen)."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), CHUNK):
            rows = slice(start, start + CHUNK)
            logits = (hidden[rows] @ weight.T).float()
            log_z = logits.logsumexp(-1, keepdim=True)
            index = targets[rows, None]
            total += (log_z - logits.gather(-1, index)).sum()
            if gradient is not None:  # d nll / d logits = softmax - onehot
                probabilities = logits.sub_(log_z).exp_()
                probabilities.scatter_add_(-1, index, torch.full_like(log_z, -1.0))
                gradient[rows] = probabilities.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None


class _SummedKL(torch.autograd.Function):
    """Sum over rows of ``tau^2 KL(softmax(W t / tau) || softmax(W h / tau))``, differentiable in ``h`` alone."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), CHUNK):
            rows = slice(start, start + CHUNK)
            log_p = (teacher[rows].to(weight.dtype) @ weight.T).float().div_(temperature).log_softmax(-1)
            log_q = (hidden[rows] @ weight.T).float().div_(temperature).log_softmax(-1)
            p = log_p.exp()
            total += temperature**2 * (p * log_p.sub_(log_q)).sum()
            if gradient is not None:  # d KL / d logits = (q - p) / tau
                gradient[rows] = temperature * log_q.exp_().sub_(p).to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None, None


def next_token_nll(hidden: Tensor, head: nn.Linear, ids: Tensor) -> Tensor:
    """Summed negative log-likelihood of each next token.

    Args:
        hidden: ``(batch, T, d)``, after the model's final norm.
        head: the frozen language-model head, ``d -> V`` without bias.
        ids: ``(batch, T)``, the input tokens; position t predicts token t + 1.

    Returns:
        Scalar float32 in nats, the sum over ``batch * (T - 1)`` predictions; differentiable in ``hidden``.

    Raises:
        ValueError: if the head is wrapped, has a bias or is trainable, for which this loss has no gradient.
    """
    _check_head(head)
    return _SummedNLL.apply(hidden[:, :-1].flatten(0, 1), head.weight, ids[:, 1:].flatten())


def distillation_kl(hidden: Tensor, head: nn.Linear, teacher: Tensor, temperature: float) -> Tensor:
    """Summed divergence of the model's next-token distribution from its teacher's, both softened.

    ``tau^2 KL(softmax(W t / tau) || softmax(W h / tau))``; with the factor tau^2 its gradient keeps its size as tau
    grows (Hinton, Vinyals & Dean 2015, arXiv:1503.02531).

    Args:
        hidden: ``(batch, T, d)``, after the model's final norm.
        head: the frozen head W that model and teacher share, ``d -> V`` without bias.
        teacher: ``(batch, T, d)``, the teacher's hidden states after its final norm; any floating dtype.
        temperature: tau.

    Returns:
        Scalar float32 in nats, the sum over the ``batch * (T - 1)`` predictions of :func:`next_token_nll`;
        differentiable in ``hidden``.

    Raises:
        ValueError: as :func:`next_token_nll`.
    """
    _check_head(head)
    return _SummedKL.apply(hidden[:, :-1].flatten(0, 1), head.weight, teacher[:, :-1].flatten(0, 1), temperature)


def _check_head(head: nn.Linear) -> None:
    if type(head) is not nn.Linear or head.bias is not None:
        raise ValueError("the language-model head must be a frozen nn.Linear without bias; do not adapt lm_head")
    if head.weight.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "the language-model head must be a frozen nn.Linear without bias, and this one is not frozen; call "
            "model.requires_grad_(False) first, as load_model and attach do"
        )
