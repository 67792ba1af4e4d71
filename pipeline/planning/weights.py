"""How many parameters a language model has, by the headers of its weight files, else by its configuration."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.lm.source import ModelSource

HEADER_BYTES = 2**27  # of a file's header, at most
BLOCK_SQUARES = 12  # parameters of a block over d_model squared: four of the attention, eight of an MLP four times as wide


def n_parameters(source: ModelSource, n_blocks: int | None = None) -> int:
    """Parameters of a model, or of its embedding and first blocks; exact of all of it where its files are here."""
    embedding = source.vocab_size * source.d_model
    tables = 1 if source.config.get("tie_word_embeddings") else 2
    whole = sum(_of_files(source)) or tables * embedding + source.n_layers * BLOCK_SQUARES * source.d_model**2
    if n_blocks is None:
        return whole
    return embedding + max(whole - embedding, 0) * min(n_blocks, source.n_layers) // source.n_layers


def _of_files(source: ModelSource) -> Iterator[int]:
    if source.gguf is not None:
        yield source.gguf.n_weights
        return
    try:
        files = source.weight_files()
    except PipelineError:
        return
    for file in files:
        yield _of_file(file)


def _of_file(file: Path) -> int:
    """Numbers in a safetensors file; 0 if it is none."""
    try:
        with open(file, "rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(size)) if size < HEADER_BYTES else {}
    except (OSError, ValueError, struct.error):
        return 0
    about = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return sum(_numbers(name, entry) for name, entry in about.items())


def _numbers(name: str, entry: dict[str, Any]) -> int:
    """How many numbers a tensor holds: two in a byte of MXFP4, and none in its scales."""
    stored = math.prod(entry["shape"])
    if entry.get("dtype") != "U8":
        return stored
    return 0 if name.endswith("_scales") else 2 * stored
