"""A dictionary's encoder and decoder as plain matrices: what the initialisation's strategies set, whatever the kind.

Most kinds have one part. A cross-layer transcoder has one for each layer (encoder of the layer, the decoder block that
writes the same layer, and beside it the earlier layers' blocks that write it too); a crosscoder has one whose inputs and
labels are its hook points side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


def _same(x: Tensor) -> Tensor:
    return x


class LinearPart(NamedTuple):
    """One encoder [d_in, F] and one decoder [F, d_out]; tensors are views of the parameters.

    Attributes:
        W_E: [d_in, F].
        b_E: [F].
        rows: gives the decoder rows [F, d_out], a view or a copy.
        set_rows: writes them.
        b_D: [d_out], or None without decoder bias.
        inputs: the part's input [N, d_in] of a dictionary's input.
        labels: its label [N, d_out] of a dictionary's label.
        gated: the encoder has a second, sigmoid branch (GLU).
        other_rows: [..., F, d_out], a view of the rows with which other encoders write the same label; None: there are none.
    """

    W_E: Tensor
    b_E: Tensor
    rows: Callable[[], Tensor]
    set_rows: Callable[[Tensor], object]
    b_D: Tensor | None
    inputs: Callable[[Tensor], Tensor] = _same
    labels: Callable[[Tensor], Tensor] = _same
    gated: bool = False
    other_rows: Tensor | None = None
