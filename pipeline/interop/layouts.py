"""Which files of a repository are a dictionary, told by their names alone, so that nothing else is fetched."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Collection
from dataclasses import dataclass, field

from pipeline.dictionaries.formats.interface import CONFIG_FILE
from pipeline.dictionaries.formats.scopeline import WEIGHTS_FILE
from pipeline.interop.interface import Layout, interchange_format
from pipeline.params.dictionary_formats import DICTIONARY_FORMATS, OWN
from pipeline.params.interchange import INTERCHANGE_FORMATS

_OWN = Layout((CONFIG_FILE, WEIGHTS_FILE))


@dataclass
class Found:
    """One dictionary of a repository.

    Attributes:
        formats: whose files these may be, by their names.
        files: that are read for it, paths in the repository.
    """

    formats: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)


def layouts(format: str | None = None) -> dict[str, tuple[Layout, ...]]:
    """{name: its layouts} of one format, or of all, ours among them; none of one that does not say them.

    Raises:
        ParamsError: no such format.
    """
    names = [format] if format else [*DICTIONARY_FORMATS, *INTERCHANGE_FORMATS]
    return {name: _layouts_of(name) for name in names}


def _layouts_of(name: str) -> tuple[Layout, ...]:
    if name in DICTIONARY_FORMATS:
        return (_OWN,) if name == OWN else ()
    return interchange_format(name).layouts


def dictionaries_in(files: Collection[str], format: str | None = None, folder: str = "") -> dict[str, Found]:
    """{place: what it is} of all dictionaries in or below a folder; a place is a folder, of a set one of its files.

    Args:
        files: paths in the repository.
        format: of the files; None: any.
        folder: "": all of the repository.
    """
    folders: dict[str, set[str]] = {}
    for file in files:
        parent = posixpath.dirname(file)
        folders.setdefault(parent, set()).add(file)
        while parent:  # a layout may name files of folders below
            parent = posixpath.dirname(parent)
            folders.setdefault(parent, set())
    known, places = set(files), dict[str, Found]()
    asked = layouts(format)
    for place in sorted(folders, key=natural):
        if not _inside(place, folder) and place != posixpath.dirname(folder):
            continue
        for name, each in ((name, each) for name, own in asked.items() for each in own):
            for at, wanted in _fit(each, place, folders[place], known):
                if _inside(at, folder):
                    found = places.setdefault(at, Found())
                    found.formats.add(name)
                    found.files |= wanted
    return places


def _fit(layout: Layout, place: str, own: Collection[str], known: Collection[str]) -> list[tuple[str, set[str]]]:
    """(place, files) of each dictionary that the files of a folder are in this layout."""
    matched: dict[str, set[str]] = {}
    for pattern in layout.needed:
        path = posixpath.join(place, pattern)
        if any(c in pattern for c in "*?["):
            stem = re.compile(re.escape(f"{place}/" if place else "") + fnmatch.translate(pattern))
            matched[pattern] = {file for file in own if stem.fullmatch(file)}
        else:
            matched[pattern] = {path} & set(known)
        if not matched[pattern]:
            return []
    beside = {posixpath.normpath(posixpath.join(place, name)) for name in layout.beside} & set(known)
    if layout.each is None:
        return [(place, beside.union(*matched.values()))]
    common = beside.union(*(files for pattern, files in matched.items() if pattern != layout.each))
    return [(file, common | {file}) for file in sorted(matched[layout.each], key=natural)]


def _inside(place: str, folder: str) -> bool:
    return not folder or place == folder or place.startswith(f"{folder}/")


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts layer_2 before layer_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
