"""The history of a run: figures of its log steps, one line of JSON each."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


class History:
    """Figures of the log steps: a list in memory, or lines of a file that outlives a kill.

    Args:
        file: JSON lines; None: in memory.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = []

    def resume(self, n_bytes: int) -> None:
        """Drop what was written after the first `n_bytes` bytes, the past of a resume point."""
        if self.file is not None and self.file.exists():
            with open(self.file, "ab") as stream:
                stream.truncate(n_bytes)

    def add(self, row: dict[str, Any]) -> None:
        """Append a log step's figures."""
        if self.file is None:
            self.rows.append(row)
            return
        with open(self.file, "a", encoding="ascii") as stream:
            stream.write(json.dumps(row, sort_keys=True) + "\n")

    def digest(self, n_bytes: int) -> str:
        """sha256 of the file's first `n_bytes` bytes."""
        digest = hashlib.sha256()
        if self.file is not None and n_bytes > 0:
            with open(self.file, "rb") as stream:
                digest.update(stream.read(n_bytes))
        return digest.hexdigest()

    def size(self) -> int:
        """Bytes of the file so far."""
        return self.file.stat().st_size if self.file is not None and self.file.exists() else 0


class FollowedHistory(History):
    """One that another process writes."""

    def resume(self, n_bytes: int) -> None:
        """Nothing."""

    def add(self, row: dict[str, Any]) -> None:
        """Nothing."""
