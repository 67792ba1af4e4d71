"""Digests of files that are not ours and may be large: a file is read again only if its size, times or place have changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import write_json

_JUST_NOW = 2e9  # nanoseconds: what is written now may be written again without another time


class FileDigests:
    """Digests of the contents of files, remembered between runs.

    Args:
        memory: the JSON file that remembers them; if it is missing or damaged, every file is read.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            self._known = dict(json.loads(memory.read_text()))

    def of(self, path: Path) -> str:
        """sha256 of one file's content; links are followed.

        Raises:
            DataError: it cannot be read.
        """
        place = os.path.realpath(path)
        try:
            found = os.stat(place)
            state = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
            known = self._known.get(place)
            if isinstance(known, list) and known[:-1] == state:
                return str(known[-1])
            with open(place, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); restore the file") from None
        if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _JUST_NOW:
            self._known[place] = [*state, digest]
        return digest

    def of_all(self, base: Path, names: Iterable[str]) -> dict[str, int | str | None]:
        """{"files": how many, "sha256": of their names and contents} of the files `names` below `base`."""
        digest = hashlib.sha256()
        sorted_names = sorted(names)
        for name in sorted_names:
            digest.update(f"{self.of(base / name)} {name}\n".encode(errors="surrogateescape"))
        return {"files": len(sorted_names), "sha256": digest.hexdigest()}

    def of_place(self, place: Path) -> dict[str, int | str | None]:
        """`of_all` of a file, or of the files that lie directly in a directory, hidden ones left out."""
        if place.is_file():
            return self.of_all(place.parent, [place.name])
        names = [file.name for file in place.iterdir() if file.is_file() and not file.name.startswith(".")]
        return self.of_all(place, names)

    def remember(self) -> None:
        """Write the memory; where it cannot be written, every file is read again the next time."""
        with contextlib.suppress(OSError):
            write_json(self._memory, self._known)
