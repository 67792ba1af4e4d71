"""What a format of another tool does: to tell its files, to read and to write them, and to compute as that tool does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor

from pipeline.errors import ParamsError, unknown_name
from pipeline.interop.plain import PlainDictionary
from pipeline.params.interchange import FEATURE_FORMATS, INTERCHANGE_FORMATS

if TYPE_CHECKING:
    from pipeline.analysis.feature_tables import FeatureStore
    from pipeline.interop.feature_format import FeatureFormat

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Layout:
    """Which files are a dictionary of a format, so that they are told, and fetched, by their names alone.

    Attributes:
        needed: patterns, or paths below its directory; each has a file.
        beside: what is read too, where it is there; paths relative to its directory.
        each: the one of `needed` of which each file is a dictionary, with the others; None: all together are one.
    """

    needed: tuple[str, ...]
    beside: tuple[str, ...] = ()
    each: str | None = None


@dataclass(frozen=True)
class Loading:
    """Where an exported dictionary, or a set of them, is loaded from.

    Attributes:
        repository: user/repository.
        folder: of its files in the repository; "": the repository itself.
        kind: of the dictionary.
        about: what is known of its model.
    """

    repository: str
    folder: str
    kind: str
    about: Mapping[str, Any]

    def snapshot(self, use: str) -> str:
        """Lines that fetch the folder with huggingface_hub and give its place to `use`, where {} stands for it."""
        patterns = f', allow_patterns="{self.folder}/*"' if self.folder else ""
        inside = f' + "/{self.folder}"' if self.folder else ""
        return (
            "from huggingface_hub import snapshot_download\n\n"
            f'folder = snapshot_download("{self.repository}"{patterns}){inside}\n{use.format("folder")}'
        )


class InterchangeFormat(ABC):
    """A format of another tool.

    Attributes:
        name: `--format`.
        library: what the hub calls the tool (library_name of a model card); None: it has no name there.
        layouts: its files; none: of a repository all of the folder that is named is fetched.
    """

    name: ClassVar[str]
    library: ClassVar[str | None] = None
    layouts: ClassVar[tuple[Layout, ...]] = ()

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether one dictionary of this format is at `path` (a directory or a file), by the names of files and keys."""

    @abstractmethod
    def read(self, path: Path) -> PlainDictionary:
        """The dictionary at `path`.

        Raises:
            DataError: a file is missing, damaged, contradicts another one, or holds what cannot be had here, by name.
        """

    def inside(self, path: Path) -> list[Path]:
        """What a file or directory that is a set of dictionaries holds; none where it is no set."""
        return []

    def place(self, dictionaries: Sequence[PlainDictionary], path: Path) -> Path:
        """The directory that `write` makes for `path`."""
        return path

    def prepared(self, plain: PlainDictionary) -> PlainDictionary:
        """The dictionary in the form that is written, which computes the same.

        Raises:
            ParamsError: the format cannot hold it; the message says what of it, and what to do.
        """
        names = [name for name in INTERCHANGE_FORMATS if type(interchange_format(name)).write is not InterchangeFormat.write]
        raise ParamsError(f"--format {self.name}: is read here, not written (written: {', '.join(names)})")

    def write(self, dictionaries: Sequence[PlainDictionary], path: Path) -> list[Path]:
        """Write a directory that is there and empty.

        Args:
            dictionaries: prepared; one, of a format that holds sets several.
            path: the directory.

        Returns: for each dictionary the path inside, as `read` and `forward` take it.

        Raises:
            ParamsError: they are no set of this format.
        """
        raise NotImplementedError

    def write_features(self, dictionaries: Sequence[PlainDictionary], stores: Sequence[FeatureStore], path: Path) -> None:
        """Write what the tool shows of features into a directory that `write` has written.

        Args:
            dictionaries: as of `write`.
            stores: the feature store of each.
            path: the directory.

        Raises:
            ParamsError: the format has no place for that.
            DataError: a store is of another dictionary.
        """
        raise ParamsError(f"--with-features: the format {self.name} has no pages of features (circuit_tracer has)")

    def forward(self, path: Path) -> Forward:
        """What that tool computes with the files at `path`: x -> (features, reconstruction), in float64.

        Read from the files alone and computed as the tool documents it, without what `read` and `write` share.
        """
        raise NotImplementedError

    def loading(self, place: Loading) -> dict[str, str]:
        """{tool: Python that loads what was written}, for a model card."""
        return {}

    def only(self, dictionaries: Sequence[PlainDictionary]) -> PlainDictionary:
        """The one dictionary, of a format that holds no sets."""
        if len(dictionaries) != 1:
            raise ParamsError(
                f"--format {self.name}: holds one dictionary in a directory, got {len(dictionaries)}; export them one by one"
            )
        return dictionaries[0]

    def refuse(self, plain: PlainDictionary, what: str, advice: str = "") -> ParamsError:
        """The error for a dictionary that the format cannot hold; the formats that do are added to it by who asks."""
        hint = f"; {advice}" if advice else ""
        return ParamsError(f"--format {self.name}: cannot hold {what} ({plain.kind}, {plain.gate}){hint}")


def interchange_format(name: str) -> InterchangeFormat:
    """The format of this name.

    Raises:
        ParamsError: there is none; the message lists all, those of features too, and the nearest.
    """
    if name not in INTERCHANGE_FORMATS:
        raise ParamsError(unknown_name(INTERCHANGE_FORMATS.what, name, (*INTERCHANGE_FORMATS, *FEATURE_FORMATS)))
    return cast(InterchangeFormat, INTERCHANGE_FORMATS.load(name))


def feature_format(name: str) -> FeatureFormat:
    """The format of features of this name.

    Raises:
        ParamsError: there is none; the message lists all and the nearest.
    """
    return cast("FeatureFormat", FEATURE_FORMATS.load(name))
