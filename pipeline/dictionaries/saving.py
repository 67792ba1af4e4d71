"""Writing a dictionary directory: config.json and weights.safetensors, both or neither (CONTRACTS 3); store.py reads it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save as save_tensors

from pipeline.files import atomic_directory, ensure_free_space, write_json

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"


def save_dictionary(dictionary: Dictionary, path: str | Path, extra: Mapping[str, Any] | None = None) -> None:
    """Write the directory `path` atomically; the same dictionary gives the same bytes.

    Args:
        dictionary: any kind; its weights keep their dtype.
        path: directory; one that exists is replaced.
        extra: provenance entries (without times) that are added to config.provenance; `norms` sets config.norms.
    """
    extra = dict(extra or {})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(dictionary.state_dict().items())}
    config = dataclasses.replace(
        dictionary.config,
        dtype=str(next(dictionary.parameters()).dtype).removeprefix("torch."),
        norms=extra.pop("norms", dictionary.config.norms),
        provenance={**dictionary.config.provenance, **extra},
    )
    content = save_tensors(tensors)
    weights = {
        "file": WEIGHTS_FILE,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }
    ensure_free_space(path, len(content) + 2**16, "a dictionary")
    with atomic_directory(path) as temporary:
        (temporary / WEIGHTS_FILE).write_bytes(content)
        written = {"format_version": FORMAT_VERSION, "weights": weights, **config.to_dict()}
        write_json(temporary / CONFIG_FILE, written)
