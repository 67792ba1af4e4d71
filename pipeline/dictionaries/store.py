"""Reading dictionaries in any format that is known (pipeline/dictionaries/formats); saving.py writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import dictionary_class
from pipeline.dictionaries.formats.interface import NEXT, format_at
from pipeline.dictionaries.formats.scopeline import CONFIG_FILE
from pipeline.errors import DataError, ParamsError, unknown_name
from pipeline.params.choices import STORED_DTYPES
from pipeline.params.dictionary_config import DictionaryConfig


def directory_of(place: str | Path, name: str) -> Path:
    """`place` where it is a dictionary itself, else the one of this name in it."""
    own = Path(place)
    return own if (own / CONFIG_FILE).is_file() else own / name


def read_config(path: str | Path) -> DictionaryConfig:
    """The configuration of the dictionary at `path`, of our own format without reading the weights.

    Raises:
        DataError: nothing there that a format recognises, or a file is missing, damaged or of another format version.
    """
    return format_at(Path(path)).read_config(Path(path))


def load_dictionary(
    path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | str | None = None
) -> Dictionary:
    """Read a dictionary.

    Args:
        path: written by `save_dictionary`, or the directory or file of another format that is known.
        device: where the weights go.
        dtype: of the loaded weights; None: as saved.

    Raises:
        DataError: nothing there that a format recognises; a file is missing, truncated, altered, or not of this
            configuration; the message names it.
    """
    path = Path(path)
    config, tensors = format_at(path).read(path)
    dictionary = dictionary_class(config.kind)(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in dictionary.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if "gate_scale" in found:
        wanted["gate_scale"] = dictionary.feature_shape
    if wanted != found:
        difference = _difference(found, wanted)
        raise DataError(f"{path}: the weights do not fit the configuration: {difference}; {NEXT}")
    dictionary.load_weights_(tensors)
    return dictionary.to(device=device, dtype=stored_dtype(dtype))


def stored_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The torch dtype of a name.

    Raises:
        ParamsError: not one that weights are stored in.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in STORED_DTYPES:
        raise ParamsError(unknown_name("dtype", dtype, STORED_DTYPES))
    named: torch.dtype = getattr(torch, dtype)
    return named


def _difference(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    parts = [f"{n} missing" for n in sorted(set(wanted) - set(found))]
    parts += [f"{n} unexpected" for n in sorted(set(found) - set(wanted))]
    both = sorted(n for n in set(found) & set(wanted) if found[n] != wanted[n])
    return ", ".join(parts + [f"{n} is {list(found[n])}, wanted {list(wanted[n])}" for n in both])
