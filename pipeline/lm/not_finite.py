"""Where a run of a language model first goes beyond the numbers of its dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_LOGITS = "the logits"


class NotFinite(NamedTuple):
    """The first place of a run whose value is not finite, in the order in which the model computes.

    Attributes:
        where: a hook point, or the logits.
        row: of the batch.
        position: of the token in its context.
        value: inf, -inf or nan.
        dtype: of the model.
    """

    where: str
    row: int
    position: int
    value: float
    dtype: torch.dtype

    @property
    def place(self) -> str:
        """`first at blocks.1.hook_mlp_out, position 3 (inf)`."""
        return f"first at {self.where}, position {self.position} ({self.value})"

    def __str__(self) -> str:
        """`first at blocks.1.hook_mlp_out, position 3 (inf): float16 holds at most 65,504; set model.dtype to ...`."""
        return f"{self.place}: {advice(self.dtype)}"


def advice(dtype: torch.dtype) -> str:
    """What to do about a model of this dtype that gives values that are not finite."""
    if dtype == torch.float16:
        return f"float16 holds at most {torch.finfo(dtype).max:,.0f}; set model.dtype to bfloat16 or float32"
    if dtype == torch.bfloat16:
        return "bfloat16 holds as large numbers as float32; try model.dtype float32, or another model"
    return "the model gives it in float32 too; check its weights, or take another model"


def first_not_finite(values: Mapping[str, Tensor], dtype: torch.dtype, logits: Tensor | None = None) -> NotFinite | None:
    """The first value that is not finite, or None.

    Args:
        values: {hook point: [b, T, d]} of a run, in its order.
        dtype: of the model.
        logits: [b, T, V] of the same run, if it has any.
    """
    last = {} if logits is None else {_LOGITS: logits}
    for where, value in {**values, **last}.items():
        bad = ~torch.isfinite(value).all(-1)
        if bool(bad.any()):
            row, position = (int(i) for i in bad.nonzero()[0])
            found = value[row, position].float()
            return NotFinite(where, row, position, float(found[~torch.isfinite(found)][0]), dtype)
    return None
