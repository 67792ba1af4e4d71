"""Reading one array of an activation store, chunk by chunk, each verified by its digest when it is first read.

Chunks are read from their files straight into preallocated tensors, in order (readinto, 3x faster than through zarr on a warm
page cache) or each row to a place of its own (preadv); the result equals zarr's own reading (tested). zarr itself is not
imported here. A chunk that is compressed is read and unpacked whole, whatever is wanted of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.compression import HEADER_BYTES, Compressor
from pipeline.activations.remote import RemoteStore
from pipeline.activations.schema import DIGESTS_FILE, REGENERATE, ArrayLayout, as_bytes
from pipeline.activations.vectored import read_rows_to
from pipeline.errors import DataError
from pipeline.files import json_object, read_object

T = TypeVar("T")
TRIES = 5  # to read a file that has come from an object store, before the cache is too small


def read_digests(path: Path) -> dict[int, str]:
    """{chunk: xxh3_128} of a digests file; a torn last line is left out, a missing file is empty."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return {}
    digests = {}
    for line in text.split("\n")[:-1]:
        chunk, _, digest = line.partition(" ")
        if chunk.isdecimal() and len(chunk) < 20 and len(digest) == 32:
            digests[int(chunk)] = digest
    return digests


def array_digest(layout: ArrayLayout, digests: Mapping[int, str]) -> str:
    """xxh3_128 over an array's shape, chunking, element type and chunk digests in order."""
    from xxhash import xxh3_128_hexdigest

    about = f"{layout.shape} {layout.chunk_rows} {layout.element.torch_dtype}\n"
    lines = "\n".join(digests[chunk] for chunk in range(layout.n_chunks))
    return xxh3_128_hexdigest((about + lines).encode())


class ArrayReader:
    """One array of a complete store.

    Args:
        directory: of the array.
        layout: of the array.
        remote: the object store that its directory stands for; None: it is all there.
        compressor: of its chunks; None: they are as long as their rows.

    Attributes:
        stored_bytes: of its chunks, as they are stored.

    Raises:
        DataError: the array is incomplete, altered, or a chunk is missing or of another size.
    """

    def __init__(
        self, directory: Path, layout: ArrayLayout, remote: RemoteStore | None = None, compressor: Compressor | None = None
    ) -> None:
        self.directory, self.layout, self._remote, self._compressor = directory, layout, remote, compressor
        about = read_node(directory, f"array '{layout.name}' of the activation store")
        if about["attributes"].get("complete") is not True:
            raise DataError(
                f"{directory.parent}: the activation store is incomplete: array '{layout.name}' has not been written to the "
                f"end; {REGENERATE} (it goes on from the chunks that are whole)"
            )
        if not describes(about, layout, compressor):
            raise self._fault("its description zarr.json is altered: shape, chunks, type or codecs are not the store's")
        self.digests = read_digests(directory / DIGESTS_FILE)
        self.digest: str = about["attributes"].get("digest", "")
        if len(self.digests) != layout.n_chunks or array_digest(layout, self.digests) != self.digest:
            raise self._fault(f"its list of chunk digests '{DIGESTS_FILE}' is missing or altered")
        self.stored_bytes = self._check_sizes()
        self._verified = bytearray(layout.n_chunks)

    def _fault(self, what: str) -> DataError:
        return DataError(f"{self.directory.parent}: activation store, array '{self.layout.name}': {what}; {REGENERATE}")

    def _check_sizes(self) -> int:
        """Bytes of all chunks; how long a compressed one should be only its digest tells."""
        if self._remote is None:
            sizes = {entry.name: entry.stat().st_size for entry in os.scandir(self.directory)}
        else:
            inside = f"{self.directory.name}/"
            sizes = {name.removeprefix(inside): n for name, n in self._remote.sizes.items() if name.startswith(inside)}
        total = 0
        for chunk in range(self.layout.n_chunks):
            size = sizes.get(self.layout.chunk_file(chunk))
            if size is None:
                raise self._fault(f"chunk {chunk} is missing")
            least = self.layout.chunk_bytes if self._compressor is None else HEADER_BYTES
            if size < least or (self._compressor is None and size != least):
                raise self._fault(f"chunk {chunk} is truncated: {size:,} bytes, wanted {least:,}")
            total += size
        return total

    def ahead(self, chunks: Sequence[int]) -> None:
        """Chunks that will be read next; what lies elsewhere begins to come."""
        if self._remote is not None:
            self._remote.ahead([self._name(chunk) for chunk in chunks])

    def _name(self, chunk: int) -> str:
        return f"{self.directory.name}/{self.layout.chunk_file(chunk)}"

    def _file(self, chunk: int) -> Path:
        """The file of a chunk, which is here then, if it is anywhere."""
        return self.directory / self.layout.chunk_file(chunk) if self._remote is None else self._remote.fetch(self._name(chunk))

    def empty(self, n: int) -> Tensor:
        """An uninitialised tensor for `n` rows."""
        return torch.empty((n, *self.layout.shape[1:]), dtype=self.layout.element.torch_dtype)

    def read_chunk_into(self, out: Tensor, chunk: int, start: int, stop: int) -> None:
        """Read rows start..stop, all inside one chunk, into `out` [stop - start, ...]; verify the chunk on its first read.

        Raises:
            DataError: the chunk is missing, truncated or altered.
        """
        first = chunk * self.layout.chunk_rows
        if self._verified[chunk] and self._compressor is None:
            self._read_bytes(chunk, (start - first) * self.layout.row_bytes, as_bytes(out))
        elif stop - start == self.layout.chunk_rows:
            self._read_whole(chunk, out)
        else:
            out.copy_(self._whole(chunk)[start - first : stop - first])

    def scatter_chunk(self, out: Tensor, places: np.ndarray, chunk: int, start: int, stop: int) -> None:
        """Read rows start..stop, all inside one chunk, to the rows `places` (int64) of `out`; otherwise the same.

        Raises:
            DataError: the chunk is missing, truncated or altered.
        """
        if self._compressor is not None:
            first = chunk * self.layout.chunk_rows
            out.index_copy_(0, torch.from_numpy(places), self._whole(chunk)[start - first : stop - first])
            return
        if not self._verified[chunk]:
            self._whole(chunk)
        offset = (start - chunk * self.layout.chunk_rows) * self.layout.row_bytes
        if not self._there(chunk, lambda path: read_rows_to(path, offset, self.layout.row_bytes, out.data_ptr(), places)):
            content = self.empty(stop - start)
            self.read_chunk_into(content, chunk, start, stop)
            out.index_copy_(0, torch.from_numpy(places), content)

    def _whole(self, chunk: int) -> Tensor:
        content = self.empty(self.layout.chunk_rows)
        self._read_whole(chunk, content)
        return content

    def _read_whole(self, chunk: int, out: Tensor) -> None:
        """Read a chunk and verify it; a copy here that is another one than the object is got anew once."""
        from xxhash import xxh3_128_hexdigest

        for last in (self._remote is None, True):
            try:
                stored: bytes | memoryview = as_bytes(out)
                if self._compressor is None:
                    self._read_bytes(chunk, 0, stored)
                else:
                    stored = self._there(chunk, Path.read_bytes)
                if xxh3_128_hexdigest(stored) == self.digests[chunk]:
                    self._unpack(chunk, stored, out)
                    self._verified[chunk] = 1
                    return
            except DataError:
                if last:
                    raise
            if self._remote is not None:
                self._remote.forget(self._name(chunk))
        where = "" if self._remote is None else f" (remove the object {self._remote.url}/{self._name(chunk)} first)"
        raise self._fault(f"chunk {chunk} is altered: its digest is not the one recorded when it was written{where}")

    def _unpack(self, chunk: int, stored: bytes | memoryview, out: Tensor) -> None:
        if self._compressor is not None and not self._compressor.unpack(bytes(stored), as_bytes(out)):
            raise self._fault(f"chunk {chunk} cannot be unpacked to {self.layout.chunk_bytes:,} bytes")

    def _read_bytes(self, chunk: int, offset: int, view: Any) -> None:
        def read(path: Path) -> None:
            with open(path, "rb", buffering=0) as stream:
                if offset:
                    stream.seek(offset)
                done = 0
                while done < len(view):
                    n = stream.readinto(memoryview(view)[done:])
                    if not n:
                        raise self._fault(f"chunk {chunk} is truncated: {offset + done:,} bytes")
                    done += n

        self._there(chunk, read)

    def _there(self, chunk: int, read: Callable[[Path], T]) -> T:
        """What `read` makes of a chunk's file; one that had to make room in the meantime is got again."""
        for _ in range(1 if self._remote is None else TRIES):
            with contextlib.suppress(FileNotFoundError):
                return read(self._file(chunk))
        raise self._fault(f"chunk {chunk} is missing")

    def whole(self) -> Tensor:
        """All rows."""
        out = self.empty(self.layout.shape[0])
        self.read_into(out, 0, len(out))
        return out

    def read_into(self, out: Tensor, start: int, stop: int) -> None:
        """Read rows start..stop into `out` [stop - start, ...]."""
        rows = self.layout.chunk_rows
        for chunk in range(start // rows, -(-stop // rows)):
            first, last = max(start, chunk * rows), min(stop, (chunk + 1) * rows)
            self.read_chunk_into(out[first - start : last - start], chunk, first, last)


GROUP_ATTRIBUTES = {"format_version", "fingerprint", "config", "model", "n_rows", "chunk_rows"}


def read_node(directory: Path, what: str) -> dict[str, Any]:
    """zarr.json of an array or group, with its attributes (an object, perhaps empty).

    Raises:
        DataError: it is missing or damaged.
    """
    about = read_object(directory / "zarr.json", what, REGENERATE)
    attributes = json_object(about.get("attributes", {}), f"{directory / 'zarr.json'}: attributes of {what}", REGENERATE)
    return {**about, "attributes": attributes}


def describes_group(about: Mapping[str, Any]) -> bool:
    """Whether the zarr.json of a store's group says what it should, and no more; its attributes' values are not looked at."""
    attributes = about.get("attributes", {})
    return (
        {key: value for key, value in about.items() if key not in ("attributes", "consolidated_metadata")}
        == {"zarr_format": 3, "node_type": "group"}
        and about.get("consolidated_metadata") is None
        and set(attributes) == GROUP_ATTRIBUTES
    )


def describes(about: Mapping[str, Any], layout: ArrayLayout, compressor: Compressor | None = None) -> bool:
    """Whether a zarr.json says what the fast path takes for granted, this layout in little-endian bytes, raw or compressed so,
    and no more."""
    codecs: list[dict[str, Any]] = [{"name": "bytes"}]
    if layout.item_bytes > 1:
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if compressor is not None:
        codecs.append(compressor.codec(layout.item_bytes))
    wanted = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(layout.shape),
        "data_type": layout.element.zarr_name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [layout.chunk_rows, *layout.shape[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN" if layout.element.fill != layout.element.fill else layout.element.fill,
        "codecs": codecs,
    }
    optional: dict[str, Any] = {"storage_transformers": [], "dimension_names": None, "attributes": about.get("attributes")}
    attributes = about.get("attributes", {})
    return (
        {key: value for key, value in about.items() if key not in optional} == wanted
        and all(about[key] == value for key, value in optional.items() if key in about)
        and attributes.get("torch_dtype") == str(layout.element.torch_dtype).removeprefix("torch.")
        and not set(attributes) - {"torch_dtype", "complete", "digest"}
    )
