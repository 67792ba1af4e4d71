"""Reading dictionaries in any format that is known (pipeline/dictionaries/formats); saving.py writes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipeline.dealing import by_the_first
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import dictionary_class
from pipeline.dictionaries.formats.interface import NEXT, StoredTensor, format_at
from pipeline.dictionaries.formats.scopeline import CONFIG_FILE
from pipeline.dictionaries.sharding import check_divisible, own_slices, part_need, take_part_
from pipeline.dictionaries.weights import digest_of
from pipeline.errors import DataError, ParamsError, unknown_name
from pipeline.memory import require_memory, shapes_alone
from pipeline.params.choices import STORED_DTYPES
from pipeline.params.dictionary_config import DictionaryConfig
from pipeline.processes import Reductions

PIECE = 2**24  # numbers that are read at once for a digest


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
    _check_fit(path, dictionary, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    dictionary.load_weights_(tensors)
    return dictionary.to(device=device, dtype=stored_dtype(dtype))


def load_dealt(path: str | Path, feature_group: Reductions, *, device: str | torch.device = "cpu") -> Dictionary:
    """Read the features of this process of a dictionary that is dealt to several; in one all of it.

    Of a format that allows it no process holds, and only the first one reads, more of the weights; that one sees that they are
    those that were written.

    Args:
        path: as of `load_dictionary`.
        feature_group: over the processes, each of which calls this.
        device: where the weights go.

    Raises:
        DataError: as `load_dictionary`.
        ParamsError: the features cannot be dealt to so many, or a part cannot be held.
    """
    if feature_group.size == 1:
        return load_dictionary(path, device=device)
    path = Path(path)
    stored, config = format_at(path), read_config(path)
    check_divisible(config, dictionary_class(config.kind), feature_group.size)

    def checked() -> None:
        with stored.tensors(path, check=True):
            pass

    by_the_first(checked, feature_group)
    with torch.device("meta"), shapes_alone():
        dictionary = dictionary_class(config.kind)(config)
    require_memory(part_need(dictionary, feature_group.size))
    with stored.tensors(path, check=False) as tensors:
        _check_fit(path, dictionary, {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()})
        parts = {
            name: tensor[own_slices(dictionary, name, tensor.get_shape(), feature_group)] for name, tensor in tensors.items()
        }
    take_part_(dictionary, parts, feature_group)
    return dictionary.to(device)


def stored_digest(path: str | Path, feature_group: Reductions) -> str:
    """:func:`pipeline.dictionaries.weights.weights_digest` of the dictionary at `path`.

    The first process of those that share its features reads it, a piece at a time, and tells the others.
    """

    def found() -> str:
        with format_at(Path(path)).tensors(Path(path), check=False) as tensors:
            return digest_of({name: (tuple(t.get_shape()), pieces(t)) for name, t in tensors.items()})

    def pieces(tensor: StoredTensor) -> Iterator[Tensor]:
        n_rows, *width = tensor.get_shape()
        step = max(1, PIECE // max(1, math.prod(width)))
        return (tensor[(slice(start, min(start + step, n_rows)),)] for start in range(0, n_rows, step))

    return by_the_first(found, feature_group)


def _check_fit(path: Path, dictionary: Dictionary, found: dict[str, tuple[int, ...]]) -> None:
    """Refuse weights of other names or shapes than the configuration's."""
    wanted = {name: tuple(tensor.shape) for name, tensor in dictionary.state_dict().items()}
    if "gate_scale" in found:
        wanted["gate_scale"] = dictionary.feature_shape
    if wanted != found:
        difference = _difference(found, wanted)
        raise DataError(f"{path}: the weights do not fit the configuration: {difference}; {NEXT}")


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
