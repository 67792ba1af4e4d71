"""What a file format of dictionaries does: to tell its files, to read and to write them."""

from __future__ import annotations

import contextlib
import difflib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from torch import Tensor

from pipeline.dictionaries.build import config_from_dict
from pipeline.errors import DataError, ParamsError
from pipeline.files import CHECKOUT, existing, root
from pipeline.params.dictionary_formats import DICTIONARY_FORMATS
from pipeline.uncached import made_here

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.params.dictionary_config import DictionaryConfig

OUTPUTS = ("initial", "trained", "inference")  # folders of data/ in which the pipeline writes dictionaries
MOST_FOLDERS, SHOWN = 500, 5  # that are looked into, and dictionaries that are named
NEXT = "make the directory again (`dvc repro` writes lost outputs of the pipeline)"


def foreign(path: str | Path) -> str:
    """What to do with a dictionary of another tool."""
    return f"one of another tool is read by `python -m stages.import_dictionary {path}`"


CONFIG_FILE = "config.json"  # in a directory of our own format


def members_at(folder: Path, file: str = CONFIG_FILE) -> list[str]:
    """The members of a sweep: the directories in `folder` that hold `file`; none where `folder` holds it itself."""
    return [] if (folder / file).exists() else sorted(path.parent.name for path in folder.glob(f"[!.]*/{file}"))


class StoredTensor(Protocol):
    """A tensor of a file, of which parts are read."""

    def get_shape(self) -> list[int]:
        """Its shape."""

    def __getitem__(self, some: tuple[slice, ...]) -> Tensor:
        """A part, on the CPU."""


class _Read:
    """A tensor that was read whole."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def __getitem__(self, some: tuple[slice, ...]) -> Tensor:
        return self._tensor[some]


class DictionaryFormat(ABC):
    """A file format. What it holds of a dictionary is one of our kinds, its weights named and laid out as ours."""

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether what is at `path` (a directory or a file) has this format; by the names of files where they tell."""

    @abstractmethod
    def read(self, path: Path) -> tuple[DictionaryConfig, dict[str, Tensor]]:
        """The configuration, and the weights by the names of state_dict, on the CPU.

        Raises:
            DataError: a file is missing, damaged, or holds what no kind of ours can be.
        """

    def read_config(self, path: Path) -> DictionaryConfig:
        """The configuration alone, where it can be had for less. Raises as `read`."""
        return self.read(path)[0]

    @contextlib.contextmanager
    def tensors(self, path: Path, *, check: bool) -> Iterator[Mapping[str, StoredTensor]]:
        """Within the block the weights by their names, to be read in part where the format can do that. Raises as `read`.

        Args:
            check: see that they are those that were written, which may read them all; held is a block of them at a time.
        """
        yield {name: _Read(tensor) for name, tensor in self.read(path)[1].items()}

    @abstractmethod
    def write(self, dictionary: Dictionary, path: Path, config: DictionaryConfig) -> None:
        """Write `path`, all of it or nothing; what exists is replaced.

        Args:
            dictionary: any kind.
            path: directory or file.
            config: the dictionary's configuration as it should be written, with norms and provenance.

        Raises:
            ParamsError: the format cannot hold this dictionary.
        """


def dictionary_format(name: str) -> DictionaryFormat:
    """The format of this name.

    Raises:
        ParamsError: there is none; the message lists all and the nearest.
    """
    return cast(DictionaryFormat, DICTIONARY_FORMATS.load(name))


def format_at(path: Path) -> DictionaryFormat:
    """The format of the dictionary at `path`: the first that recognises it, ours before others are imported.

    Raises:
        DataError: nothing is there, or nothing that any format recognises.
    """
    if not path.exists():
        raise DataError(f"{path}: no dictionary directory here; {instead(path)}")
    for name in DICTIONARY_FORMATS:
        if dictionary_format(name).recognises(path):
            return dictionary_format(name)
    members = members_at(path)
    if members:
        raise DataError(f"{path}: holds the members {', '.join(members)} of a sweep; name one, as {path / members[0]}")
    raise DataError(f"{path}: no dictionary of a known format (known: {', '.join(DICTIONARY_FORMATS)}); {foreign(path)}")


def instead(path: Path) -> str:
    """What to do where nothing is at `path`: a line that names the dictionaries near it."""
    if not path.is_absolute() and (CHECKOUT / path).exists():
        return f"it is in the project, {CHECKOUT}: give PROJECT / '{path}' (from pipeline.api import PROJECT)"
    if made_here(path):
        return NEXT
    near = dictionaries_near(path)
    if near:
        return f"near it {'is' if len(near) == 1 else 'are'} {', '.join(map(str, near))}; give the path of one that is there"
    folders = [place / "data" / folder for place in (root(), CHECKOUT) for folder in OUTPUTS]
    if any(path.absolute().is_relative_to(folder.absolute()) for folder in folders):
        return "it was never trained here: run `dvc repro` (or `dvc exp run`) first, or give the path of one that is there"
    there = existing(path.absolute())
    return f"{there} is there, and holds no dictionary near this path; give the path of one that is there"


def dictionaries_near(path: Path) -> list[Path]:
    """Dictionaries beside a path where nothing is, the nearest in spelling first: below the part of it that exists, as deep as
    the path, or one deeper (a member of a sweep)."""
    start = existing(path)
    if start == Path(start.anchor or "/"):  # all that the machine has is not near
        return []
    found, looked, deepest = [], 0, len(path.relative_to(start).parts)
    formats = [dictionary_format(name) for name in DICTIONARY_FORMATS]
    for folder, below, _ in os.walk(start):
        own, looked = Path(folder), looked + 1
        below[:] = sorted(name for name in below if not name.startswith("."))
        if len(own.relative_to(start).parts) > deepest or looked >= MOST_FOLDERS:
            below.clear()
        if any(each.recognises(own) for each in formats):
            found.append(own)
            below.clear()
    return sorted(found, key=lambda place: -difflib.SequenceMatcher(None, str(place), str(path)).ratio())[:SHOWN]


def configuration(values: Mapping[str, Any], file: Path) -> DictionaryConfig:
    """The configuration that a file states, as plain values.

    Raises:
        DataError: faults in them, all at once; the message names the file.
    """
    try:
        return config_from_dict(values)
    except ParamsError as error:
        raise DataError([f"{file}: {fault}" for fault in error.faults]) from None
