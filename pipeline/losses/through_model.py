"""What a replaced activation costs the language model, and the gradient in its logits (SPEC 5).

Counted are the predictions of kept tokens, as in the evaluation: of position t where mask[b, t + 1]. In float32 or wider, a few
contexts at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.losses.reductions import full_precision, widened

CHUNK_ENTRIES = 2**19  # logits turned to probabilities at once, few enough to stay in a cache


def divergence(clean_BTV: Tensor, spliced_BTV: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over counted predictions of KL(softmax(clean) || softmax(spliced)), and its gradient in `spliced`: q - p.

    Args:
        clean_BTV, spliced_BTV: logits without and with the replacement.
        mask_BT: bool, True for a kept token.

    Returns: scalar float64, nats; [B, T, V] in the dtype of `spliced`.
    """
    total, gradient = _empty(spliced_BTV)
    for rows in _chunks(spliced_BTV):
        counted = mask_BT[rows, 1:]
        log_p, log_q = (_log_probabilities(logits[rows], counted) for logits in (clean_BTV, spliced_BTV))
        p = log_p.exp()
        total += (p * (log_p - log_q)).sum(dtype=torch.float64)
        gradient[rows, :-1][counted] = (log_q.exp() - p).to(gradient.dtype)
    return total, gradient


def cross_entropy(tokens_BT: Tensor, spliced_BTV: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over counted predictions of -log softmax(spliced)[next token], and its gradient in `spliced`: q - 1 at the token.

    Arguments and returns as of :func:`divergence`; tokens_BT: int64.
    """
    total, gradient = _empty(spliced_BTV)
    for rows in _chunks(spliced_BTV):
        counted = mask_BT[rows, 1:]
        log_q, target = _log_probabilities(spliced_BTV[rows], counted), tokens_BT[rows, 1:][counted][:, None]
        total -= log_q.gather(-1, target).sum(dtype=torch.float64)
        q = log_q.exp_()
        q[torch.arange(len(q), device=q.device), target[:, 0]] -= 1.0
        gradient[rows, :-1][counted] = q.to(gradient.dtype)
    return total, gradient


class _WithGradient(torch.autograd.Function):
    """A value of r whose gradient in r is known."""

    @staticmethod
    def forward(ctx, r: Tensor, value: Tensor, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(gradient)
        ctx.dtype = r.dtype
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0]).to(ctx.dtype), None, None


def with_gradient(r: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """`value`, a scalar function of r, differentiable by its `gradient` of the shape of r."""
    found: Tensor = _WithGradient.apply(r, value, gradient)
    return found


def _empty(logits: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros((), dtype=torch.float64, device=logits.device), torch.zeros_like(logits)


def _chunks(logits: Tensor) -> Iterator[slice]:
    step = max(1, CHUNK_ENTRIES // max(1, logits[0].numel()))
    return (slice(start, start + step) for start in range(0, len(logits), step))


def _log_probabilities(logits: Tensor, counted: Tensor) -> Tensor:
    with full_precision(logits):
        return torch.log_softmax(widened(logits[:, :-1][counted]), dim=-1)
