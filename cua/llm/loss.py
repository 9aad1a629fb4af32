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
    plain = type(head) is nn.Linear and head.bias is None
    if not plain or (head.weight.requires_grad and torch.is_grad_enabled()):
        raise ValueError("the language-model head must be a frozen nn.Linear without bias; do not adapt lm_head")
    return _SummedNLL.apply(hidden[:, :-1].flatten(0, 1), head.weight, ids[:, 1:].flatten())
