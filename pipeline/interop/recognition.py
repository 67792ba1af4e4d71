"""Telling the format of what is at a path, from the files; a folder of many dictionaries is asked about, not guessed."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.dictionaries.formats.interface import dictionaries_near
from pipeline.errors import DataError
from pipeline.interop.interface import InterchangeFormat, interchange_format
from pipeline.params.dictionary_formats import DICTIONARY_FORMATS
from pipeline.params.interchange import INTERCHANGE_FORMATS

SHOWN = 8  # dictionaries of a folder that are named
BY = "`--format`; in Python import_dictionary(path, format=...)"
DEEPEST = 4  # folders below the one that was named
MOST = 2000  # folders that are looked into


def format_and_place(path: Path, name: str | None = None) -> tuple[InterchangeFormat, Path]:
    """The format of the dictionary at `path`, and where it is: `path`, or the one dictionary in it.

    Args:
        path: a directory or a file.
        name: of the format; None: it is told by the files.

    Raises:
        ParamsError: no such format.
        DataError: nothing is there, nothing of a known format (or of this one), several formats, or several dictionaries.
    """
    if not path.exists():
        near = ", ".join(map(str, dictionaries_near(path)))
        beside = f" (near it: {near})" if near else ""
        raise DataError(
            f"{path}: no dictionary here{beside}; name a directory or a file that exists, or hf:user/repository/folder"
        )
    found = _formats_at(path, name)
    if found:
        return _one_format(path, found), path
    places = _places_in(path, name)
    if not places:
        known = f"of a known format (known: {', '.join((*DICTIONARY_FORMATS, *INTERCHANGE_FORMATS))})"
        what = f"of the format {name}{_files(name)}" if name else known
        raise DataError(f"{path}: no dictionary {what} here; name its directory, or the format ({BY})")
    if len(places) > 1:
        shown = ", ".join(str(place) for place in places[:SHOWN])
        more = f" and {len(places) - SHOWN:,} more" if len(places) > SHOWN else ""
        raise DataError(f"{path}: holds {len(places):,} dictionaries, which one? name it: {shown}{more}")
    (place,) = places
    return _one_format(place, _formats_at(place, name)), place


def _files(name: str) -> str:
    """The files of a format, in parentheses; "" where they are not told by their names."""
    sets = [", ".join(layout.needed) for layout in interchange_format(name).layouts]
    return f" ({'; or '.join(sets)})" if sets else ""


def _formats_at(path: Path, name: str | None) -> list[InterchangeFormat]:
    names = list(INTERCHANGE_FORMATS) if name is None else [name]
    return [each for each in map(interchange_format, names) if each.recognises(path)]


def _one_format(path: Path, found: list[InterchangeFormat]) -> InterchangeFormat:
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise DataError(f"{path}: has the files of several formats ({names}); say which ({BY})")
    return found[0]


def _places_in(path: Path, name: str | None) -> list[Path]:
    """The dictionaries in a directory: members of a set, else those of the directories below."""
    formats = [interchange_format(each) for each in ([name] if name else INTERCHANGE_FORMATS)]
    for each in formats:
        members = each.inside(path)
        if members:
            return members
    places: list[Path] = []
    if not path.is_dir():
        return places
    looked = 0
    for folder, below, _ in os.walk(path):
        below.sort()
        own = Path(folder)
        if len(own.relative_to(path).parts) >= DEEPEST or looked >= MOST:
            below.clear()
        if own == path:
            continue
        looked += 1
        if any(each.recognises(own) for each in formats):
            places.append(own)
            below.clear()
            continue
        for each in formats:
            members = each.inside(own)
            if members:
                places += members
                below.clear()
                break
    return places
