"""Writing an activation store so that a kill at any moment loses at most the chunks that were not yet recorded.

A chunk is written to a temporary sibling and renamed; then a line with its digest is appended to `digests`. Opened again,
a writer hashes every recorded chunk: those that are missing, of another size or altered, and those without a line, are
pending. A fresh store, one that was killed, one that was damaged and one that gets a further hook point are the same case.
An array's digests, then its content digest and complete=true, are its last writes.

Of several processes the first one opens the store (StoreWriter) and alone writes down what it holds; the others write chunks
(StoreChunks) and tell it their digests.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh3_128_hexdigest

from pipeline.activations.arrays import array_digest, describes, describes_group, read_digests
from pipeline.activations.compression import HEADER_BYTES, Compressor, compressor
from pipeline.activations.remote import RemoteStore, remote_of
from pipeline.activations.schema import DIGESTS_FILE, ArrayLayout, as_bytes
from pipeline.errors import DataError
from pipeline.files import read_json, write_bytes

RECORD_SECONDS = 30.0  # between which the digests go to an object store


@contextlib.contextmanager
def disk_full_named(path: Path, cached: bool = False) -> Iterator[None]:
    """Turn "no space left" during a write into a DataError with the place and what to do.

    Args:
        path: the store's directory.
        cached: it stands for a store in an object store.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        other = "lower SCOPELINE_CACHE_GIB, or set SCOPELINE_CACHE to" if cached else "or set SCOPELINE_STORE to"
        raise DataError(
            f"{path}: no space left on the device while writing activations; the chunks written so far are kept: free some "
            f"space ({other} a larger disk), then run the same command again to go on"
        ) from None


class ArrayChunks:
    """The chunks of one array of a store that is open for writing, here or in another process.

    Args:
        directory: of the array.
        layout: of the array.
        remote: the object store that its directory stands for; None: it is the store itself.
        digests: {chunk: digest} of those that are whole.
        compressor: of its chunks; None: they are raw.

    Attributes:
        digests: the same, kept up with what is written here.
        untold: of what was written here and not yet recorded.
    """

    def __init__(
        self,
        directory: Path,
        layout: ArrayLayout,
        remote: RemoteStore | None,
        digests: Mapping[int, str],
        compressor: Compressor | None,
    ) -> None:
        self.directory, self.layout, self._remote, self._compressor = directory, layout, remote, compressor
        self.digests, self.untold = dict(digests), dict[int, str]()

    @property
    def pending(self) -> np.ndarray:
        """bool [n_chunks]: True for a chunk that is not whole."""
        pending = np.ones(self.layout.n_chunks, dtype=bool)
        pending[list(self.digests)] = False
        return pending

    def write_chunk(self, chunk: int, rows: Tensor) -> None:
        """Write a chunk's rows (CPU, contiguous, the array's dtype); the last chunk is filled up with the fill value."""
        content: bytes | memoryview = as_bytes(rows)
        if len(content) < self.layout.chunk_bytes:
            element = self.layout.element
            missing = (self.layout.chunk_bytes - len(content)) // np.dtype(element.numpy_dtype).itemsize
            content = bytes(content) + np.full(missing, element.fill, dtype=element.numpy_dtype).tobytes()
        if self._compressor is not None:
            content = self._compressor.packed(content, self.layout.item_bytes)
        path = self.directory / self.layout.chunk_file(chunk)
        partial = path.with_name(path.name + ".partial")
        room = contextlib.nullcontext() if self._remote is None else self._remote.room_for(len(content))
        try:
            with room, open(partial, "wb", buffering=0) as stream:
                done = 0
                while done < len(content):
                    done += stream.write(memoryview(content)[done:])
                os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
            raise
        digest = xxh3_128_hexdigest(content)
        if self._remote is not None:
            self._remote.push(self._name(chunk))
        self._written(chunk, digest)

    def _written(self, chunk: int, digest: str) -> None:
        self.digests[chunk] = self.untold[chunk] = digest

    def _name(self, chunk: int) -> str:
        return f"{self.directory.name}/{self.layout.chunk_file(chunk)}"


class ArrayWriter(ArrayChunks):
    """One array: its description, its chunks, the record of their digests."""

    def __init__(
        self,
        group: Any,
        directory: Path,
        layout: ArrayLayout,
        remote: RemoteStore | None = None,
        compressor: Compressor | None = None,
    ) -> None:
        super().__init__(directory, layout, remote, {}, compressor)
        self._recorded = time.monotonic()
        self._array = _open_array(group, directory, layout, compressor)
        self.digests |= {
            chunk: digest for chunk, digest in read_digests(directory / DIGESTS_FILE).items() if self._is_whole(chunk, digest)
        }
        if self.pending.any():
            if self._array.attrs.get("complete") is not False:
                self._array.attrs.update({"complete": False})
            self._record()

    def _is_whole(self, chunk: int, digest: str) -> bool:
        path = self.directory / self.layout.chunk_file(chunk)
        if chunk >= self.layout.n_chunks:
            return False
        if self._remote is not None:  # put before its digest was recorded, and verified when it is read
            return self._has_size(self._remote.sizes.get(self._name(chunk), 0))
        try:
            if not self._has_size(path.stat().st_size):
                return False
            return xxh3_128_hexdigest(path.read_bytes()) == digest
        except FileNotFoundError:
            return False

    def _has_size(self, n_bytes: int) -> bool:
        return n_bytes >= HEADER_BYTES if self._compressor is not None else n_bytes == self.layout.chunk_bytes

    def _record(self) -> None:
        """Write the digests in order, unless they stand so already."""
        path = self.directory / DIGESTS_FILE
        lines = "".join(f"{chunk} {self.digests[chunk]}\n" for chunk in sorted(self.digests)).encode()
        if not path.is_file() or path.read_bytes() != lines:
            write_bytes(path, lines)

    @property
    def digest(self) -> str:
        """Content digest of a finished array."""
        return array_digest(self.layout, self.digests)

    def record(self, chunk: int, digest: str) -> None:
        """Note that a chunk has been written, here or by another process."""
        with open(self.directory / DIGESTS_FILE, "ab", buffering=0) as stream:
            stream.write(f"{chunk} {digest}\n".encode())
        self.digests[chunk] = digest
        if self._remote is not None and time.monotonic() - self._recorded > RECORD_SECONDS:
            self._put(DIGESTS_FILE)
            self._recorded = time.monotonic()

    _written = record

    def _put(self, *files: str) -> None:
        if self._remote is not None:
            for file in files:
                self._remote.push(f"{self.directory.name}/{file}")

    def read_chunk(self, chunk: int) -> Tensor:
        """The rows of a chunk that is whole."""
        if self._remote is not None:
            self._remote.fetch(self._name(chunk))
        content = bytearray((self.directory / self.layout.chunk_file(chunk)).read_bytes())
        if self._compressor is not None:
            packed, content = bytes(content), bytearray(self.layout.chunk_bytes)
            if not self._compressor.unpack(packed, memoryview(content)):
                raise DataError(f"{self.directory}: chunk {chunk} cannot be unpacked; remove the array's directory")
        return torch.frombuffer(content, dtype=self.layout.element.torch_dtype).view(-1, *self.layout.shape[1:])

    def finish(self) -> None:
        """Record the digests in order, then the content digest and complete=true, unless that is so already."""
        about = {"digest": self.digest, "complete": True}
        self._record()
        if {key: self._array.attrs.get(key) for key in about} != about:
            self._array.attrs.update(about)
            self._put(DIGESTS_FILE, "zarr.json")


class StoreChunks:
    """The arrays of one store that another process has opened for writing.

    Args:
        path: the store's directory.
        layouts: the arrays to write.
        digests: {array: {chunk: digest}} of what is whole.
        compressor_name: of the chunks; None: they are as long as their rows.
    """

    arrays: Mapping[str, ArrayChunks]

    def __init__(
        self,
        path: Path,
        layouts: Sequence[ArrayLayout],
        digests: Mapping[str, Mapping[int, str]],
        compressor_name: str | None = None,
    ) -> None:
        self.path, self.remote = path, remote_of(path)
        for layout in layouts:  # where an object store's files are kept elsewhere than the other process keeps them
            (path / layout.name).mkdir(parents=True, exist_ok=True)
        found = compressor(compressor_name)
        self.arrays = {
            layout.name: ArrayChunks(path / layout.name, layout, self.remote, digests[layout.name], found) for layout in layouts
        }

    def write_rows(self, name: str, first_row: int, rows: Tensor, order: Tensor | None) -> None:
        """Write the pending chunks of one array in a run of rows that starts at a chunk.

        Args:
            name: the array.
            first_row: store row of the run's first row, a multiple of the rows per chunk.
            rows: the run in sequence order, whole chunks unless it ends the array.
            order: int64, which of `rows` each store row holds; None: the same one.
        """
        array = self.arrays[name]
        step = array.layout.chunk_rows
        pending = array.pending
        with disk_full_named(self.path, self.remote is not None):
            for start in range(0, len(rows), step):
                chunk = (first_row + start) // step
                if pending[chunk]:
                    part = rows[start : start + step] if order is None else rows.index_select(0, order[start : start + step])
                    array.write_chunk(chunk, part.contiguous())

    def take_untold(self) -> dict[str, dict[int, str]]:
        """{array: {chunk: digest}} of what was written here since this was asked last, and is recorded nowhere."""
        found = {name: array.untold for name, array in self.arrays.items() if array.untold}
        for name in found:
            self.arrays[name].untold = {}
        return found


class StoreWriter(StoreChunks):
    """The arrays of one store, created or opened for going on; hold the store's lock while it lives.

    Args:
        path: the store's directory.
        attributes: of the group: format_version, fingerprint, config, model, n_rows, chunk_rows.
        layouts: the arrays to write.
    """

    arrays: Mapping[str, ArrayWriter]

    def __init__(self, path: Path, attributes: Mapping[str, Any], layouts: Sequence[ArrayLayout]) -> None:
        import zarr

        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.remove_leftovers()
        remote = self.remote = remote_of(path)
        if remote is not None:
            remote.pull()
        with disk_full_named(path, remote is not None):
            if not (_readable_node(path, "group") and describes_group(read_json(path / "zarr.json", "group"))):
                (path / "zarr.json").unlink(missing_ok=True)
            group = zarr.open_group(str(path), mode="a", zarr_format=3)
            if any(group.attrs.get(key) != value for key, value in attributes.items()):
                group.attrs.update(dict(attributes))
            about = remote, compressor(attributes["config"].get("compressor"))
            self.arrays = {layout.name: ArrayWriter(group, path / layout.name, layout, *about) for layout in layouts}
        if remote is not None:
            remote.push("zarr.json")

    @property
    def digests(self) -> dict[str, dict[int, str]]:
        """{array: {chunk: digest}} of what is whole."""
        return {name: array.digests for name, array in self.arrays.items()}

    def record(self, written: Mapping[str, Mapping[int, str]]) -> None:
        """Note what other processes have written: {array: {chunk: digest}}."""
        with disk_full_named(self.path, self.remote is not None):
            for name, digests in written.items():
                for chunk, digest in digests.items():
                    self.arrays[name].record(chunk, digest)

    def remove_leftovers(self) -> None:
        """Delete temporary siblings that a killed writer left."""
        for leftover in self.path.rglob("*.partial"):
            leftover.unlink(missing_ok=True)

    def pending_bytes(self) -> int:
        """Bytes still to be written, at most."""
        return sum(int(array.pending.sum()) * array.layout.chunk_bytes for array in self.arrays.values())

    def finish(self) -> None:
        """Mark every array complete."""
        with disk_full_named(self.path, self.remote is not None):
            for array in self.arrays.values():
                array.finish()


def _readable_node(directory: Path, kind: str) -> bool:
    try:
        about = read_json(directory / "zarr.json", kind)
    except DataError:
        return False
    return isinstance(about, dict) and about.get("node_type") == kind and about.get("zarr_format") == 3


def _open_array(group: Any, directory: Path, layout: ArrayLayout, compressor: Compressor | None) -> Any:
    """The zarr array in `directory`; a description that is missing or not the layout's is written anew."""
    if _readable_node(directory, "array") and describes(read_json(directory / "zarr.json", "array"), layout, compressor):
        return group[layout.name]
    (directory / "zarr.json").unlink(missing_ok=True)
    return group.create_array(
        layout.name,
        shape=layout.shape,
        chunks=(layout.chunk_rows, *layout.shape[1:]),
        dtype=layout.element.zarr_name,
        compressors=None if compressor is None else compressor.codec(layout.item_bytes),
        filters=None,
        fill_value=layout.element.fill,
        chunk_key_encoding={"name": "default", "separator": "."},
        attributes={"torch_dtype": str(layout.element.torch_dtype).removeprefix("torch."), "complete": False},
        config={"write_empty_chunks": True},
    )
