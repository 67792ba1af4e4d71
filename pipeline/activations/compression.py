"""Compressors of a store's chunks: `activations.compressor`, each a Blosc codec of Zarr v3, by numcodecs.

A chunk's file is then one Blosc buffer, and its digest is that of the file: what was altered is noticed before anything is
unpacked. The bits or bytes of neighbouring numbers are put together first: signs and exponents are alike, mantissas are not.
Algorithm, level and order are those that were best on the default's activations (docs/object-stores.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import DataError, unknown_name
from pipeline.params.choices import COMPRESSORS

HEADER_BYTES = 16  # of a Blosc buffer, which is never shorter
_SHUFFLES = {"shuffle": 1, "bitshuffle": 2}  # in Blosc's header


@dataclass(frozen=True)
class Compressor:
    """Bytes to a shorter buffer and back.

    Attributes:
        algorithm: as Blosc names it.
        level: how hard it tries.
        shuffle: what is put together first: "shuffle", bytes; "bitshuffle", bits.
    """

    algorithm: str
    level: int
    shuffle: str

    def codec(self, item_bytes: int) -> dict[str, Any]:
        """What an array's zarr.json says of it.

        Args:
            item_bytes: of a number.
        """
        about = {"typesize": item_bytes, "cname": self.algorithm, "clevel": self.level, "shuffle": self.shuffle, "blocksize": 0}
        return {"name": "blosc", "configuration": about}

    def packed(self, content: bytes | memoryview, item_bytes: int) -> bytes:
        """The buffer of a chunk's bytes, whole numbers of `item_bytes` (1, 2 or 4)."""
        from numcodecs import blosc

        numbers = np.frombuffer(content, dtype=f"u{item_bytes}")
        return blosc.compress(numbers, self.algorithm.encode(), self.level, _SHUFFLES[self.shuffle], 0)

    def unpack(self, packed: bytes, out: memoryview) -> bool:
        """Unpack a buffer into writable bytes; whether it is a buffer, and of so many bytes."""
        from numcodecs import blosc

        if len(packed) < HEADER_BYTES or int.from_bytes(packed[4:8], "little") != len(out):
            return False
        try:
            blosc.decompress(packed, out)
        except (RuntimeError, ValueError):
            return False
        return True


_KNOWN = dict(zip(COMPRESSORS, (Compressor("lz4", 3, "bitshuffle"), Compressor("zstd", 3, "shuffle")), strict=True))


def compressor(name: str | None) -> Compressor | None:
    """The compressor of that name; None: chunks are stored as they are.

    Raises:
        DataError: unknown name.
    """
    if name is None:
        return None
    if name not in _KNOWN:
        raise DataError(unknown_name("activations.compressor", name, COMPRESSORS))
    return _KNOWN[name]
