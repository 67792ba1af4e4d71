"""The matrices that the strategies set: a dictionary's linear parts (dictionaries/parts.py)."""

from __future__ import annotations

import torch

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.parts import LinearPart
from pipeline.errors import ParamsError


def parts_of(dictionary: Dictionary, option: str) -> list[LinearPart]:
    """The dictionary's linear parts, for the strategy `initializer.<option>`; at least one.

    Raises:
        ParamsError: the kind has none: the option makes no sense for it.
    """
    parts = dictionary.parts()
    if not parts:
        raise ParamsError(
            f"initializer.{option}: not for dictionary.kind '{dictionary.config.kind}', which has no encoder and decoder that "
            "are plain matrices; switch it off"
        )
    return parts


@torch.no_grad()
def transpose_encoder_(part: LinearPart, factor: float) -> bool:
    """W_E = factor * W_D^T where d_in == d_out; False (and nothing done) where they differ."""
    rows = part.rows()
    if part.W_E.shape != rows.T.shape:
        return False
    part.W_E.copy_(rows.T * factor)
    return True
