"""A dictionary by its path on the hub or on the disk: which one is meant, its files alone, and what is recorded of them.

Of a repository the files are listed first; their names say which are a dictionary (layouts.py), and only those of the one that
is meant are fetched. Recorded are repository, folder, commit, and sha256 of every file.
"""

from __future__ import annotations

import difflib
import hashlib
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.interop.hub_client import Listing, fetched, listing
from pipeline.interop.hub_paths import ADVICE, HubPath, hub_path, is_of_hub
from pipeline.interop.layouts import Found, dictionaries_in, layouts

SHOWN = 8  # dictionaries of a repository that are named


@dataclass(frozen=True)
class LocalCopy:
    """Files that are here.

    Attributes:
        path: of the directory or file.
        origin: {repository, folder, revision, files: {name: sha256}} of a hub path; digest: of the files.
        said: how they were come by, where it is not as asked.
    """

    path: Path
    origin: dict[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()


def local_copy(path: str | Path, format: str | None = None) -> LocalCopy:
    """What `path` names, fetched if it is of the hub and not in the cache.

    Args:
        path: local, or hf:user/repository/folder@revision.
        format: of the files; None: any that is known.

    Raises:
        DataError: no such form of a path, the hub has no such folder or several dictionaries in it, or cannot be reached.
    """
    if not is_of_hub(path):
        place = Path(path).expanduser()
        return LocalCopy(place, {"digest": digest_of(place)} if place.exists() else {})
    asked = hub_path(path)
    found = listing(asked)
    place_in, files = _chosen(found, asked, format)
    root = fetched(found, files)
    missing = sorted(name for name in files if not (root / name).is_file())
    if missing:
        raise DataError(f"{path}: {', '.join(missing[:SHOWN])} could not be had of commit {found.commit}; fetch it again")
    digests = {name: _sha256(root / name) for name in sorted(files)}
    _check_digests(asked, digests, found.sha256)
    place = root / place_in
    about = {
        "repository": asked.repository,
        "folder": place_in or None,
        "revision": found.commit,
        "asked_revision": asked.revision,
        "files": digests,
        "digest": digest_of(place),
    }
    return LocalCopy(place, about, found.said)


def _chosen(found: Listing, asked: HubPath, format: str | None) -> tuple[str, set[str]]:
    """(folder or file, files to fetch) of the one dictionary that is meant."""
    folder, files = asked.folder, found.sizes
    places = dictionaries_in(files, format, folder)
    if folder in places:
        return folder, places[folder].files
    if folder in files:
        parent = posixpath.dirname(folder)
        around = dictionaries_in(files, format, parent)
        return folder, {folder, *(around[parent].files if parent in around else ())}
    if len(places) == 1:
        ((place, one),) = places.items()
        return place, one.files
    if len(places) > 1:
        raise DataError(f"{asked}: holds {len(places):,} dictionaries, which one? name it: {shown(list(places))}")
    below = {name for name in files if not folder or name.startswith(f"{folder}/")}
    if below and not all(layouts(format).values()):
        return folder, below  # a format that does not say which files are its own
    raise DataError(f"{asked}: {_nothing(found, asked, format, bool(below))}")


def _nothing(found: Listing, asked: HubPath, format: str | None, there: bool) -> str:
    """Why there is no dictionary, and what is near."""
    what = f"of the format {format}" if format else "of a known format"
    where = f"at commit {found.commit}" + (" in the cache" if found.said else "")
    fault = f"no dictionary {what} here, {where}" if there else f"{asked.repository} has no '{asked.folder}' {where}"
    all_of_it = list(dictionaries_in(found.sizes, format))
    near = difflib.get_close_matches(asked.folder, all_of_it, n=4 * SHOWN, cutoff=0.5)
    if near:
        near.sort(key=lambda place: -len(posixpath.commonprefix([f"{place}/".split("/"), asked.folder.split("/")])))
        return f"{fault}; nearest: {', '.join(near[:3])}"
    return f"{fault}; it holds: {shown(all_of_it)}" if all_of_it else f"{fault}; {ADVICE}"


def shown(places: list[str]) -> str:
    """The first of them, and how many more."""
    more = f" and {len(places) - SHOWN:,} more (all: --list)" if len(places) > SHOWN else ""
    return ", ".join(place or "the repository itself" for place in places[:SHOWN]) + more


def listed(path: str | Path, format: str | None = None) -> list[str]:
    """A line for each dictionary of a repository of the hub: its path, the formats that its files can be, their size.

    Raises:
        DataError: as `listing`; or a local path.
    """
    if not is_of_hub(path):
        raise DataError(f"{path}: --list looks into a repository of the hub; {ADVICE}")
    asked = hub_path(path)
    found = listing(asked)
    places = dictionaries_in(found.sizes, format, asked.folder)
    if not places:
        raise DataError(f"{asked}: {_nothing(found, asked, format, False)}")
    return [*found.said, *(_line(asked.at(place), each, found.sizes) for place, each in places.items())]


def _line(path: HubPath, each: Found, sizes: Mapping[str, int]) -> str:
    return f"{path}  {' or '.join(sorted(each.formats))}  {sum(sizes[name] for name in each.files):,} bytes"


def _check_digests(asked: HubPath, digests: Mapping[str, str], known: Mapping[str, str]) -> None:
    wrong = [name for name, digest in digests.items() if known.get(name, digest) != digest]
    if wrong:
        raise DataError(
            f"{asked}: {', '.join(wrong)}: what lies in the cache is not what the hub has (sha256 differs); delete it there "
            "and fetch it again"
        )


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(place: Path) -> str:
    """sha256 over the names and contents of a file, or of the files that lie in a directory itself."""
    digest = hashlib.sha256()
    for file in sorted(place.iterdir()) if place.is_dir() else [place]:
        if file.is_file():
            digest.update(f"{file.name} {_sha256(file)}\n".encode())
    return digest.hexdigest()
