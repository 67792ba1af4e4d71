"""The code that made a stage's result: the files and folders of code among its `deps` in dvc.yaml, and their digest.

DVC runs a stage again when one of them has changed. What a stage keeps of its own (checkpoints of a training, the saved pass
of an analysis) carries their digest, so that other code does not go on from it. Modules that change no result (reading
parameters, messages, tracking) are not among them: tests/closure.py has the list and why.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.files import CHECKOUT

PACKAGES = ("pipeline", "stages")


def code_of(stage: str) -> tuple[str, ...]:
    """Files and folders, relative to the checkout, that hold the code of a stage, as dvc.yaml names them.

    The whole package where dvc.yaml does not say (it is not there, as in an installed package; it is damaged; it has no such
    stage): then any edit counts.
    """
    import yaml

    try:
        text = (CHECKOUT / "dvc.yaml").read_text(encoding="utf-8")
        entries = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"][stage]["deps"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return PACKAGES[:1]
    names = (next(iter(entry)) if isinstance(entry, dict) else str(entry) for entry in entries)
    return tuple(name.rstrip("/") for name in names if name.split("/")[0] in PACKAGES)


def covers(place: str, path: str) -> bool:
    """Whether `place`, a file or a folder, holds the file `path`."""
    return place == path or path.startswith(f"{place}/")


def code_files(stage: str, without: tuple[str, ...] = ()) -> list[str]:
    """The files of :func:`code_of`, relative to the checkout, sorted; no caches and no hidden files.

    Args:
        stage: of dvc.yaml.
        without: files and folders that are left out.
    """
    found = {file for place in code_of(stage) for file in _files(place)}
    return sorted(file for file in found if not any(covers(place, file) for place in without))


def _files(place: str) -> Iterator[str]:
    """The one file, or all in the folder: what DVC hashes of it (.dvcignore), but no hidden ones."""
    if (CHECKOUT / place).is_file():
        yield place
    for folder, folders, files in os.walk(CHECKOUT / place):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
        where = Path(folder).relative_to(CHECKOUT).as_posix()
        yield from (f"{where}/{name}" for name in files if not name.startswith(".") and not name.endswith(".pyc"))


@functools.cache
def code_digest(stage: str, without: tuple[str, ...] = ()) -> str:
    """sha256 over the names and lines of :func:`code_files`, however the checkout ends lines."""
    digest = hashlib.sha256()
    for file in code_files(stage, without):
        content = (CHECKOUT / file).read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{file} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
