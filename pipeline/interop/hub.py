"""Paths in the layout of the Hugging Face hub: hf:user/repository/folder@revision.

huggingface_hub finds the snapshot, in its cache first; what is read is recorded by repository, folder and commit, and any
dictionary by the digest of its files.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.foreign import reading

PREFIX = "hf:"
_PLACE = re.compile(r"hf:(?://)?([^/@\s]+/[^/@\s]+)(?:/([^@]*))?(?:@([^@\s]+))?")
_ADVICE = "write hf:user/repository/folder@revision, or give a local directory in the same layout"


@dataclass(frozen=True)
class LocalCopy:
    """Files that are here.

    Attributes:
        path: of the directory or file.
        origin: {repository, folder, revision} of a hub path; digest: of the files.
    """

    path: Path
    origin: dict[str, Any] = field(default_factory=dict)


def local_copy(path: str | Path) -> LocalCopy:
    """What `path` names, fetched if it is of the hub and not in the cache.

    Raises:
        DataError: no such form of a path, or the hub has no such folder or cannot be reached.
    """
    name = str(path)
    if not name.startswith(PREFIX):
        place = Path(name).expanduser()
        return LocalCopy(place, {"digest": digest_of(place)} if place.exists() else {})
    match = _PLACE.fullmatch(name)
    if match is None:
        raise DataError(f"{name}: not a path of the hub; {_ADVICE}")
    repository, folder, revision = match[1], (match[2] or "").strip("/"), match[3]
    from huggingface_hub import snapshot_download

    patterns = [f"{folder}/*", folder, f"{Path(folder).parent.as_posix()}/*.json"] if folder else None
    with reading(f"{name}: cannot be fetched from the hub", _ADVICE):
        root = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    place = root / folder
    if not place.exists():
        raise DataError(f"{name}: the repository has no '{folder}' at revision {revision or 'main'} ({root.name}); {_ADVICE}")
    about = {"repository": repository, "folder": folder or None, "revision": root.name, "digest": digest_of(place)}
    return LocalCopy(place, about)


def digest_of(place: Path) -> str:
    """sha256 over the names and contents of a file, or of the files that lie in a directory itself."""
    digest = hashlib.sha256()
    for file in sorted(place.iterdir()) if place.is_dir() else [place]:
        if file.is_file():
            with open(file, "rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()
