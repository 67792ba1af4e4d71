"""The one boundary to the readers of other libraries: what they raise becomes a message of ours.

    with reading(f"{path}: not a Parquet file", "write the file anew"):
        file = pyarrow.parquet.ParquetFile(path)

pyarrow, zarr, datasets, safetensors, transformers and the decompressors raise what they like of a damaged file (ValueError,
OSError, KeyError, exceptions of their own, panics of Rust), other things in other versions. No list of types is kept, and so
nothing but calls of such a library belongs into the block: what our own code raises is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from pipeline.errors import DataError, PipelineError, one_line

LONGEST = 300
_OUT_OF_MEMORY = ("can't allocate memory", "bad_alloc", "Cannot allocate memory")
_PANICS = "pyo3_runtime"  # module of the BaseException that a panic of a library written in Rust becomes


@contextlib.contextmanager
def reading(fault: str, advice: str = "", kind: type[PipelineError] = DataError) -> Iterator[None]:
    """Call another library in the block; what it raises becomes `<fault> (<what it says>); <advice>`.

    Args:
        fault: what is wrong and where: file, row, key.
        advice: what to do.
        kind: of the error.

    Raises:
        PipelineError: of that kind. One that is raised in the block passes as it is, and so does a full disk, which is no
            fault of what is read.
    """
    try:
        yield
    except PipelineError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != _PANICS:
            raise
        if full_disk(error) is not None:
            raise
        raise kind(f"{fault} ({told(error)})" + (f"; {advice}" if advice else "")) from None


def told(error: BaseException) -> str:
    """What an exception says, on one line of at most LONGEST characters, with its type where it is not the system's own."""
    name = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        return shortened(error.strerror)
    text = shortened(error)
    return f"{name}: {text}" if text else name


def shortened(text: object) -> str:
    """A text of another program on one line, cut to LONGEST characters."""
    line = one_line(" ".join(str(text).split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def full_disk(error: BaseException | None) -> str | None:
    """`<path>: ` (or nothing, if it is not known) where the error, or what it was raised from, is a full disk; else None."""
    for each in _with_causes(error):
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{each.filename}: " if each.filename else ""
        if not isinstance(each, OSError) and "No space left on device" in str(each):  # libraries that are not Python
            return ""
    return None


def full_memory(error: BaseException | None) -> bool:
    """Whether the error, or what it was raised from, is memory that is not there, of the machine or of a device."""
    return any(
        isinstance(each, MemoryError)
        or type(each).__name__ == "OutOfMemoryError"  # torch's, of a device
        or (isinstance(each, OSError) and each.errno == errno.ENOMEM)
        or any(words in str(each) for words in _OUT_OF_MEMORY)
        for each in _with_causes(error)
    )


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
