"""Activations stored as they are, rounded to a floating-point dtype."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.activations.codecs.interface import ROWS, ElementType, Part, StorageCodec


class PlainCodec(StorageCodec):
    """One array, of the element type given."""

    def __init__(self, element: ElementType) -> None:
        self.dtype, self.parts = element.torch_dtype, {ROWS: Part(element)}

    def encode(self, rows: Tensor, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {ROWS: rows.to(self.dtype)}

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        return parts[ROWS].to(dtype) if out is None else out.copy_(parts[ROWS])


# bfloat16 is no Zarr type: its bits are stored; 0x7FC0 is its NaN, so a missing chunk does not read as zeros.
BFLOAT16 = PlainCodec(ElementType(torch.bfloat16, "uint16", "<u2", 0x7FC0))
FLOAT16 = PlainCodec(ElementType(torch.float16, "float16", "<f2", float("nan")))
FLOAT32 = PlainCodec(ElementType(torch.float32, "float32", "<f4", float("nan")))
