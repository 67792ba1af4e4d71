"""Which tokens of a batch have features."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import DataError, ParamsError


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


def check_padding(padding: Tensor | None, x: Tensor, *, kind: str, reads_sequences: bool) -> None:
    """Refuse padding that is not of these contexts, or of a kind that reads each token by itself.

    Args:
        padding: bool [b, S], True for a position that holds no token; None: there are none.
        x: input [b, S, d_in].
        kind: of the dictionary.
        reads_sequences: features of a token depend on those before it.

    Raises:
        ParamsError: the kind reads no sequences.
        DataError: another type or shape.
    """
    if padding is None:
        return
    if not reads_sequences:
        raise ParamsError(f"padding: dictionary.kind '{kind}' reads each token by itself; leave tokens out with mask instead")
    if padding.dtype != torch.bool:
        raise DataError(
            f"padding: wanted bool, True for a position that holds no token, got {padding.dtype}; give padding.bool()"
        )
    if padding.shape != x.shape[:-1]:
        raise DataError(
            f"padding: wanted one value for each token, {list(x.shape[:-1])}, got {list(padding.shape)}; give it in the shape "
            "of the contexts"
        )
