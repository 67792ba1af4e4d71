"""Activations of several hook points as one tensor, in a dictionary's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def stacked(activations: Mapping[str, Tensor], hooks: Sequence[str]) -> Tensor:
    """The activations of `hooks` as a dictionary takes them: [..., d] of one, [..., L, d] of several."""
    return activations[hooks[0]] if len(hooks) == 1 else torch.stack([activations[hook] for hook in hooks], dim=-2)


def split(x: Tensor, hooks: Sequence[str]) -> dict[str, Tensor]:
    """{hook: [..., d]} of a tensor [..., d] (one hook point) or [..., L, d] (several)."""
    if len(hooks) == 1:
        return {hooks[0]: x}
    return {hook: x[..., index, :] for index, hook in enumerate(hooks)}
