"""Digests of files that are not ours and may be large: a file is read again only if its size, times or place have changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import write_json

EMBEDDED = "demo"  # the name of the text and the model that come with the project
SHOWN = 12  # digits of a digest in a line
_JUST_NOW = 2e9  # nanoseconds: what is written now may be written again without another time


class FileDigests:
    """Digests of the contents of files, remembered between runs.

    Args:
        memory: the JSON file that remembers them; if it is missing or damaged, every file is read.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, Any] = {}
        self._places: dict[str, list[tuple[Path, int]]] = {}  # {digest: what has it and its bytes, in the order asked for}
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
                return self._seen(str(known[-1]), path, found.st_size)
            with open(place, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); restore the file") from None
        if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _JUST_NOW:
            self._known[place] = [*state, digest]
        return self._seen(digest, path, found.st_size)

    def _seen(self, digest: str, place: Path, n_bytes: int) -> str:
        self._places.setdefault(digest, []).append((place, n_bytes))
        return digest

    def of_all(self, base: Path, names: Iterable[str]) -> dict[str, int | str | None]:
        """{"files": how many, "sha256": of their names and contents} of the files `names` below `base`."""
        digest, n_bytes = hashlib.sha256(), 0
        sorted_names = sorted(names)
        for name in sorted_names:
            own = self.of(base / name)
            digest.update(f"{own} {name}\n".encode(errors="surrogateescape"))
            n_bytes += self._places[own][-1][1]
        self._seen(digest.hexdigest(), base / sorted_names[0] if len(sorted_names) == 1 else base, n_bytes)
        return {"files": len(sorted_names), "sha256": digest.hexdigest()}

    def of_place(self, place: Path) -> dict[str, int | str | None]:
        """`of_all` of a file, or of the files that lie directly in a directory, hidden ones left out."""
        if place.is_file():
            return self.of_all(place.parent, [place.name])
        names = [file.name for file in place.iterdir() if file.is_file() and not file.name.startswith(".")]
        return self.of_all(place, names)

    def lines(self, what: str, contents: Mapping[str, Any] | None) -> Iterator[str]:
        """`model: path, 5 files, 75,000 bytes, sha256 0123456789ab`, or what is known of it on the hub; a line for each part.

        Args:
            what: lies there.
            contents: what tells it from others, made by these digests; or several such by name.
        """
        contents = contents or {}
        digest, name = (each if isinstance(each := contents.get(key), str) else None for key in ("sha256", "name"))
        parts = {name: part for name, part in contents.items() if isinstance(part, Mapping)}
        if digest is not None:
            places = self._places[digest]
            path, n_bytes = places.pop(0) if len(places) > 1 else places[0]  # the same content may lie in two places
            files = "1 file" if contents["files"] == 1 else f"{contents['files']:,} files"
            yield f"{what}: {path}, {files}, {n_bytes:,} bytes, sha256 {digest[:SHOWN]}"
        elif name is not None:
            at = contents.get("commit") or contents.get("revision")
            hub = f"on the hub, revision {at}" if at else "on the hub, its newest revision"
            yield f"{what}: {name}, {'the embedded one' if name == EMBEDDED else hub}"
        for part, inside in parts.items():
            yield from self.lines(f"{what} {part}".strip(), inside)

    def remember(self) -> None:
        """Write the memory; where it cannot be written, every file is read again the next time."""
        with contextlib.suppress(OSError):
            write_json(self._memory, self._known)
