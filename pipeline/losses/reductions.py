"""MEAN of SPEC 5: over kept tokens (and over layers or hook points), in float32, outside autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def full_precision(like: Tensor) -> Iterator[None]:
    """No autocast on the device of `like`: bf16 reductions round a count of 4 to 3.988."""
    with torch.autocast(like.device.type, enabled=False):
        yield


def widened(tensor: Tensor) -> Tensor:
    """float32, or float64 where it is that already."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def aligned(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of token dimensions [...] with trailing ones, to broadcast against `like` [..., further dims]."""
    return mask.reshape(*mask.shape, *(1,) * (like.ndim - mask.ndim))


def mean_over_tokens(per_token: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over kept tokens, and evenly over any further dimension (layers, hook points).

    Args:
        per_token: [...] or [..., L], one value per token (and layer), float32 or float64.
        mask: bool [...], True for a kept token; None: all. No kept token: 0.

    Returns: scalar.
    """
    if mask is None:
        return per_token.mean()
    weights = aligned(mask, per_token).expand_as(per_token)
    return torch.where(weights, per_token, 0.0).sum() / weights.sum().clamp_min(1)


def mean_per_entry(values: Tensor, mask: Tensor | None, entry_dims: int) -> Tensor:
    """Mean over kept tokens of each entry by itself (of a feature, of a layer).

    Args:
        values: [..., *entry], float32 or float64; the last `entry_dims` dimensions are no tokens.
        mask: bool [...], True for a kept token; None: all. No kept token: 0.
        entry_dims: 0 for one value per token.

    Returns: [*entry].
    """
    by_token = values.reshape(-1, *values.shape[values.ndim - entry_dims :])
    if mask is None:
        return by_token.mean(0)
    kept = mask.reshape(-1)
    return torch.where(aligned(kept, by_token), by_token, 0.0).sum(0) / kept.sum().clamp_min(1)
