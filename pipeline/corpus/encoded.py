"""Lines of a UTF-8 file, compressed or not, with messages that say where it is none."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.corpus.folder import suffix_of
from pipeline.errors import DataError
from pipeline.foreign import reading

_BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_UTF8_MARK = b"\xef\xbb\xbf"
_BUFFER = 2**17


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if its suffix names a compression.

    Raises:
        DataError: the file cannot be read, is damaged (also while it is read), or its compression needs a package that is not
            there.
    """
    _, compression = suffix_of(path.name)
    with reading(f"{path}: cannot be read", "restore the file"):
        raw = open(path, "rb", buffering=0)  # noqa: SIM115
    fault, advice = f"{path}: the compressed file is damaged", "compress it anew"
    with raw, _unpacked(raw, path, compression) as stream:
        if not compression:
            fault, advice = f"{path}: cannot be read", "restore the file"
        with io.BufferedReader(_Read(stream, fault, advice), _BUFFER) as buffered:
            yield buffered


class _Read(io.RawIOBase):
    """A stream whose faults are DataErrors that say `fault` and `advice`."""

    def __init__(self, stream: Any, fault: str, advice: str) -> None:
        self._stream, self._fault, self._advice = stream, fault, advice

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        with reading(self._fault, self._advice):
            return int(self._stream.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        with reading(self._fault, self._advice):
            return int(self._stream.readinto(buffer))


@contextlib.contextmanager
def _unpacked(raw: IO[bytes], path: Path, compression: str) -> Iterator[IO[bytes]]:
    if not compression:
        yield raw
        return
    import fsspec.compression

    known: dict[str, Any] = fsspec.compression.compr
    name = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}[compression]
    if name not in known:
        raise DataError(f"{path}: {compression} needs a package that is not installed (`pip install zstandard`), or unpack it")
    with known[name](raw, mode="rb") as stream:
        yield stream


def text_of(line: bytes, path: Path, offset: int) -> str:
    """One line of a file, decoded; a byte order mark at the file's start is left out.

    Args:
        line: its bytes.
        path: of the file, for the message.
        offset: where in the file it begins.

    Raises:
        DataError: it is not UTF-8, or binary.
    """
    if offset == 0:
        mark = _BYTE_ORDER_MARKS.get(line[:2])
        if mark is not None:
            raise DataError(f"{path}: the byte order mark says {mark}; write the file as UTF-8 (iconv -f {mark} -t UTF-8)")
        line = line.removeprefix(_UTF8_MARK)
    at = line.find(b"\0")
    if at < 0:
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            at = error.start
    raise DataError(
        f"{path}: not a UTF-8 text file (byte {offset + at} is {line[at]:#04x}); give plain text, .jsonl or .parquet"
    )
