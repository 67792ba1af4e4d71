"""What a resume point is on disk: a directory with a record, and the tensors of each process in a file of its own.

    state.json                  the record, sealed: step, size and sha256 of each file, what is no tensor
    state.safetensors           tensors of process 0: all that is not sharded, and its shards
    state-<rank>.safetensors    shards of another process (of one process, or of data parallel ones, there is none)

A file with shards says in its header where they lie, as torch.distributed.checkpoint does for safetensors, and is read by it
too. No pickle is written or read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save_file as save_tensors
from torch import Tensor

from pipeline.contracts.sealing import sealed, unsealed
from pipeline.errors import CheckpointError, DataError
from pipeline.files import is_number, json_object, read_object, write_json
from pipeline.foreign import reading

FORMAT_VERSION = 3
RECORD = "state.json"
_OFFSETS, _SAVED = "DCP_SHARDING_INFO", "saved_offsets"  # names of torch.distributed.checkpoint's
_PIECE = 2**24  # bytes read at once


def file_of(rank: int) -> str:
    """Name of the file that a process writes."""
    return "state.safetensors" if rank == 0 else f"state-{rank:05d}.safetensors"


def write_tensors(
    place: Path, tensors: Mapping[str, Tensor], offsets: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Any]:
    """Write contiguous tensors of the CPU to a new file and flush it to disk.

    Args:
        place: of the file.
        tensors: {name: tensor, or the shard of one}.
        offsets: {name: first index in each dimension} where some are shards.

    Returns: its size and digest, as the record has them.

    Raises:
        OSError: it cannot be written.
    """
    metadata = None
    if offsets is not None:
        metadata = {_OFFSETS: json.dumps({name: {_SAVED: list(offsets[name])} for name in sorted(offsets)})}
    save_tensors(dict(sorted(tensors.items())), place, metadata=metadata)
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"size": place.stat().st_size, "sha256": digest_of(place)}


def digest_of(place: Path) -> str:
    """sha256 of a file, read piece by piece."""
    digest = hashlib.sha256()
    with open(place, "rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def write_record(place: Path, about: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the record of the files in the directory `place`."""
    write_json(place / RECORD, sealed({"format_version": FORMAT_VERSION, **about, "files": dict(files)}))


def read_record(place: Path) -> dict[str, Any]:
    """The record of a point: step, history_bytes, history_sha256, files, extra.

    Raises:
        CheckpointError: missing, damaged or of another version.
    """
    with damaged(place):
        record = read_object(place / RECORD, "a checkpoint's state")
        version = record["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{place}: format_version {version}, wanted {FORMAT_VERSION}")
        record, _ = unsealed(record, place / RECORD, "a checkpoint's state", next_action="")
        record["step"], record["history_bytes"] = int(record["step"]), int(record["history_bytes"])
        files = json_object(record["files"], f"{place / RECORD}: files")
        for name, about in files.items():
            if Path(name).name != name or not {"size", "sha256"} <= about.keys():
                raise CheckpointError(f"{place / RECORD}: files.{name} is damaged")
        if file_of(0) not in files:
            raise CheckpointError(f"{place / RECORD}: files has no {file_of(0)}")
        extra = json_object(record["extra"], f"{place / RECORD}: extra")
        last = json_object(extra.get("last", {}), f"{place / RECORD}: extra.last")
        if wrong := [name for name, value in last.items() if not is_number(value)]:
            raise CheckpointError(f"{place / RECORD}: extra.last.{wrong[0]} is no finite number")
    return record


def check_files(place: Path, record: Mapping[str, Any], first: int = 0, every: int = 1) -> None:
    """Refuse files of a point that are not as its record says.

    Args:
        place: directory of the point.
        record: of it.
        first, every: the files to be read: every so many-th, from the first so many-th on.

    Raises:
        CheckpointError: names the first that is missing, truncated, altered, or not of this point.
    """
    with damaged(place):
        for found in sorted(file.name for file in place.iterdir() if file.name not in (RECORD, *record["files"])):
            raise CheckpointError(f"{place / found}: is not of this checkpoint")
        files = dict(sorted(record["files"].items())[first::every])
        for name, about in files.items():
            file, size = place / name, about["size"]
            found = file.stat().st_size
            if found != size:
                raise CheckpointError(f"{file}: truncated, {found:,} of {size:,} bytes")
            if digest_of(file) != about["sha256"]:
                raise CheckpointError(f"{file}: altered, its sha256 is not the recorded one")


def read_tensors(place: Path) -> dict[str, Tensor]:
    """The tensors of a point that is one file, on the CPU.

    Raises:
        CheckpointError: it is no file of tensors.
    """
    file = place / file_of(0)
    with damaged(place):
        content = file.read_bytes()
        with reading(f"{file}: damaged", kind=CheckpointError):
            return load_tensors(content)


@contextlib.contextmanager
def damaged(place: Path) -> Iterator[None]:
    """Within the block what is wrong with the point in `place` is a CheckpointError."""
    try:
        yield
    except DataError as error:
        raise CheckpointError(str(error).removesuffix("; ")) from None
    except OSError as error:
        raise CheckpointError(f"{place}: {error.filename or ''} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{place / RECORD}: damaged ({error})") from None
