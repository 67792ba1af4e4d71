"""Which tokens of a batch have features."""

from __future__ import annotations

from torch import Tensor


def kept_tokens(mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """mask & ~padding, either of them being absent; None where every token is kept.

    Whether all are kept is looked at on the CPU only, elsewhere it would wait for the device.

    Args:
        mask: bool [...], True for a token that is trained on.
        padding: bool [...], True for a position that holds no token.
    """
    if padding is not None:
        mask = ~padding if mask is None else mask & ~padding
    return None if mask is None or (mask.device.type == "cpu" and bool(mask.all())) else mask
