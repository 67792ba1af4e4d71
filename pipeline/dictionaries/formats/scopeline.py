"""Our own format (CONTRACTS 3): a directory with config.json and weights.safetensors, both or neither.

config.json holds format_version, every configuration field, of the weights file its size, sha256 and each tensor's shape, and
the digest of all that, so that a missing, truncated, altered or foreign file is found by name when the directory is opened.
Version 1 had no digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from pipeline.contracts.sealing import sealed, unsealed
from pipeline.dictionaries.formats.interface import (
    CONFIG_FILE,
    NEXT,
    DictionaryFormat,
    StoredTensor,
    configuration,
    foreign,
)
from pipeline.errors import DataError
from pipeline.files import atomic_directory, ensure_free_space, read_bytes, read_object, reading_file, write_json
from pipeline.foreign import reading

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.params.dictionary_config import DictionaryConfig

FORMAT_VERSION = 2
READ_VERSIONS = (1, FORMAT_VERSION)
WEIGHTS_FILE = "weights.safetensors"
WHAT = "the dictionary's weights file"


class _Scopeline(DictionaryFormat):
    def recognises(self, path: Path) -> bool:
        """By the weights' name, or, where they are missing, a config.json of ours."""
        return (path / WEIGHTS_FILE).is_file() or _states_a_version(path / CONFIG_FILE)

    def read(self, path: Path) -> tuple[DictionaryConfig, dict[str, Tensor]]:
        config, recorded = _parse(path / CONFIG_FILE)
        return config, _read_weights(path / WEIGHTS_FILE, recorded)

    def read_config(self, path: Path) -> DictionaryConfig:
        return _parse(path / CONFIG_FILE)[0]

    @contextlib.contextmanager
    def tensors(self, path: Path, *, check: bool) -> Iterator[Mapping[str, StoredTensor]]:
        recorded, file = _parse(path / CONFIG_FILE)[1], path / WEIGHTS_FILE
        with reading_file(file, WHAT, NEXT), file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest() if check else recorded["sha256"]
        _check(file, recorded, file.stat().st_size, digest)
        with reading(f"{file}: not a safetensors file", NEXT):
            opened = safe_open(file, "pt")
        with opened as stored:
            names = list(stored.keys())
            yield {name: stored.get_slice(name) for name in names}

    def write(self, dictionary: Dictionary, path: Path, config: DictionaryConfig) -> None:
        """The same dictionary gives the same bytes; its weights keep their dtype."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(dictionary.state_dict().items())}
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
            write_json(temporary / CONFIG_FILE, sealed(written))


FORMAT = _Scopeline()


def _states_a_version(file: Path) -> bool:
    try:
        return "format_version" in json.loads(file.read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def _parse(file: Path) -> tuple[DictionaryConfig, dict[str, Any]]:
    """The configuration and the record of the weights."""
    values = read_object(file, "a dictionary's configuration", NEXT)
    if "format_version" not in values:
        raise DataError(f"{file}: no configuration of this project (format_version is missing); {foreign(file.parent)}")
    version = values["format_version"]
    if version not in READ_VERSIONS:
        known = " and ".join(map(str, READ_VERSIONS))
        raise DataError(f"{file}: format_version {version!r} is unknown, this version reads {known}; {NEXT}")
    if version == FORMAT_VERSION:
        values, _ = unsealed(values, file, "a dictionary's configuration", next_action=NEXT)
    del values["format_version"]
    recorded = values.pop("weights", None)
    if not (isinstance(recorded, dict) and isinstance(recorded.get("size"), int) and isinstance(recorded.get("sha256"), str)):
        raise DataError(f"{file}: the record of the weights (size, sha256) is missing or damaged; {NEXT}")
    return configuration(values, file), recorded


def _read_weights(file: Path, recorded: Mapping[str, Any]) -> dict[str, Tensor]:
    content = read_bytes(file, WHAT, NEXT)
    _check(file, recorded, len(content), hashlib.sha256(content).hexdigest())
    with reading(f"{file}: not a safetensors file", NEXT):
        return load_tensors(content)


def _check(file: Path, recorded: Mapping[str, Any], size: int, digest: str) -> None:
    if size < recorded["size"]:
        raise DataError(f"{file}: truncated, {size:,} of {recorded['size']:,} bytes; {NEXT}")
    if digest != recorded["sha256"]:
        raise DataError(f"{file}: altered since it was written (sha256 differs from {CONFIG_FILE}); {NEXT}")
