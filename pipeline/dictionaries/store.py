"""Reading dictionary directories, config.json + weights.safetensors, that saving.py has written (CONTRACTS 3).

config.json holds format_version, every configuration field, and of the weights file its size, sha256 and each tensor's
shape, so that a missing, truncated, altered or foreign file is found by name when the directory is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import config_from_dict, dictionary_class
from pipeline.dictionaries.saving import CONFIG_FILE, FORMAT_VERSION, WEIGHTS_FILE
from pipeline.errors import DataError, ParamsError, unknown_name
from pipeline.files import read_json
from pipeline.params.choices import STORED_DTYPES
from pipeline.params.dictionary_config import DictionaryConfig

NEXT = "make the directory again (`dvc repro` writes lost outputs of the pipeline)"


def read_config(path: str | Path) -> DictionaryConfig:
    """The configuration of the dictionary in directory `path`, without reading the weights.

    Raises:
        DataError: the directory or its config.json is missing, damaged or of another format version.
    """
    return _parse(Path(path))[0]


def load_dictionary(
    path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | str | None = None
) -> Dictionary:
    """Read a dictionary directory.

    Args:
        path: directory written by `save_dictionary`.
        device: where the weights go.
        dtype: of the loaded weights; None: as saved.

    Raises:
        DataError: a file is missing, truncated, altered, or not of this configuration; the message names it.
    """
    path = Path(path)
    config, recorded = _parse(path)
    tensors = _read_weights(path / WEIGHTS_FILE, recorded)
    dictionary = dictionary_class(config.kind)(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in dictionary.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if "gate_scale" in found:
        wanted["gate_scale"] = dictionary.feature_shape
    if wanted != found:
        difference = _difference(found, wanted)
        raise DataError(f"{path / WEIGHTS_FILE}: tensors do not fit {CONFIG_FILE}: {difference}; {NEXT}")
    dictionary.load_weights_(tensors)
    return dictionary.to(device=device, dtype=_dtype(dtype))


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in STORED_DTYPES:
        raise ParamsError(unknown_name("dtype", dtype, STORED_DTYPES))
    named: torch.dtype = getattr(torch, dtype)
    return named


def _parse(path: Path) -> tuple[DictionaryConfig, dict[str, Any]]:
    if not path.is_dir():
        raise DataError(f"{path}: no dictionary directory here; {NEXT}")
    file = path / CONFIG_FILE
    values = read_json(file, "a dictionary's configuration", NEXT)
    if not isinstance(values, dict) or "format_version" not in values:
        raise DataError(f"{file}: not a dictionary's configuration (format_version is missing); {NEXT}")
    version = values.pop("format_version")
    if version != FORMAT_VERSION:
        raise DataError(f"{file}: format_version {version!r} is unknown, this version reads {FORMAT_VERSION}; {NEXT}")
    recorded = values.pop("weights", None)
    if not isinstance(recorded, dict) or not {"size", "sha256"} <= set(recorded):
        raise DataError(f"{file}: the record of the weights (size, sha256) is missing; {NEXT}")
    try:
        return config_from_dict(values), recorded
    except ParamsError as error:
        raise DataError("\n".join(f"{file}: {fault}" for fault in error.faults)) from None


def _read_weights(file: Path, recorded: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{file}: the dictionary's weights are missing; {NEXT}") from None
    if len(content) < recorded["size"]:
        raise DataError(f"{file}: truncated, {len(content):,} of {recorded['size']:,} bytes; {NEXT}")
    if hashlib.sha256(content).hexdigest() != recorded["sha256"]:
        raise DataError(f"{file}: altered since it was written (sha256 differs from {CONFIG_FILE}); {NEXT}")
    try:
        return load_tensors(content)
    except Exception as error:  # safetensors raises its own exception type and ValueError, KeyError
        raise DataError(f"{file}: not a safetensors file ({error}); {NEXT}") from None


def _difference(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    parts = [f"{n} missing" for n in sorted(set(wanted) - set(found))]
    parts += [f"{n} unexpected" for n in sorted(set(found) - set(wanted))]
    both = sorted(n for n in set(found) & set(wanted) if found[n] != wanted[n])
    return ", ".join(parts + [f"{n} is {list(found[n])}, wanted {list(wanted[n])}" for n in both])
