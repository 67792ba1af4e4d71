"""What a storage codec does: rows to the arrays of the store that hold them, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from pipeline.errors import DataError, ParamsError
from pipeline.params.codecs import STORAGE_CODECS

ROWS = ""  # the part that has the rows' own shape


@dataclass(frozen=True)
class ElementType:
    """How a dtype is stored: torch's, Zarr's name, numpy's for the stored bytes, and the fill value's bits."""

    torch_dtype: torch.dtype
    zarr_name: str
    numpy_dtype: str
    fill: float | int | bool


class Part(NamedTuple):
    """One array of a stored hook point.

    Attributes:
        element: its element type.
        width: numbers for each token; None: as many as the hook point is wide.
        rows: of an array that all tokens share; None: one for each token.
    """

    element: ElementType
    width: int | None = None
    rows: int | None = None


class StorageCodec(ABC):
    """Activations as one array or several; each token's row by itself, so that any rows can be read alone.

    Attributes:
        dtype: of decoded rows where no other is asked for.
        parts: the arrays by name; the one named ROWS has the rows' shape.
    """

    dtype: torch.dtype
    parts: Mapping[str, Part]

    @property
    def token_parts(self) -> list[str]:
        """The parts that have a row for each token."""
        return [name for name, part in self.parts.items() if part.rows is None]

    @property
    def shared_parts(self) -> list[str]:
        """The parts that all tokens share."""
        return [name for name, part in self.parts.items() if part.rows is not None]

    def measure(self, rows: Tensor) -> dict[str, Tensor]:
        """The shared parts, [rows of the part, width of the part] on the CPU, from some rows [..., d] of the hook point."""
        return {}

    @abstractmethod
    def encode(self, rows: Tensor, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{part: [..., width of the part]} of rows [..., d]; a number that cannot be stored becomes one that is not finite.

        Args:
            rows: any float dtype, on any device.
            shared: as `measure` gives it.
        """

    @abstractmethod
    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """The rows [..., d] in `dtype`.

        Args:
            parts: as `encode` and `measure` give them, on one device.
            dtype: of the result.
            out: [..., d] in this dtype, to be filled and returned; None: the result may share a part's memory.
        """


def storage_codec(storage_dtype: str) -> StorageCodec:
    """The codec of a `storage_dtype`.

    Raises:
        DataError: unknown name.
    """
    try:
        return cast(StorageCodec, STORAGE_CODECS.load(storage_dtype))
    except ParamsError as error:
        raise DataError(error.faults) from None
