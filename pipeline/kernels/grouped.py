"""Decoding with a block-triangular decoder (SPEC 1.2): x_hat[j] = sum_{l <= j} f[l] W_D[j][l].

One batched product for each target. Forward holds [B, L, D] and one target's partial sums beside the features; backward
accumulates into a single gradient of the features, instead of one padded copy for every target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _GroupedDecode(torch.autograd.Function):
    """f [L, B, F], blocks [j + 1, F, D] -> [L, B, D]."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, *blocks: Tensor) -> Tensor:
        ctx.save_for_backward(f, *blocks)
        x_hat = f.new_empty(len(blocks), f.shape[1], blocks[0].shape[-1])
        for j, block in enumerate(blocks):
            torch.mm(f[0], block[0], out=x_hat[j])
            for layer in range(1, j + 1):
                x_hat[j].addmm_(f[layer], block[layer])
        return x_hat

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        f, *blocks = ctx.saved_tensors
        grad = grad.contiguous()
        grad_f = None
        if ctx.needs_input_grad[0]:
            grad_f = torch.empty_like(f, memory_format=torch.contiguous_format)
            for layer in range(len(blocks)):
                torch.mm(grad[layer], blocks[layer][layer].T, out=grad_f[layer])
                for j in range(layer + 1, len(blocks)):
                    grad_f[layer].addmm_(grad[j], blocks[j][layer].T)
        grad_blocks = [
            torch.bmm(f[: j + 1].transpose(1, 2), grad[j].expand(j + 1, -1, -1)) if ctx.needs_input_grad[j + 1] else None
            for j in range(len(blocks))
        ]
        return (grad_f, *grad_blocks)


def grouped_decode(f: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    """x_hat[..., j, :] = sum_{l <= j} f[..., l, :] @ blocks[j][l].

    Args:
        f: [..., L, F].
        blocks: L tensors [j + 1, F, D].

    Returns: [..., L, D] in the dtype of f (that of autocast inside it).
    """
    device = f.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        f, blocks = f.to(dtype), [block.to(dtype) for block in blocks]
    tokens = f.shape[:-2]
    by_layer = f.reshape(-1, *f.shape[-2:]).transpose(0, 1)
    with torch.autocast(device, enabled=False):
        x_hat: Tensor = _GroupedDecode.apply(by_layer, *blocks)
    return x_hat.transpose(0, 1).reshape(*tokens, len(blocks), -1)
