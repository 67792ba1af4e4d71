"""What of a feature store a site has accepted, in a file of lines that outlives the process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import parse_json

Feature = tuple[str, int]  # source, index within it


class Journal:
    """The batches that went to one source set of one site.

    The first line names the feature store; then a line is written when a batch is about to be sent, and one when it was
    accepted or is known not to be there. A line that was cut off by a kill is none.

    Args:
        path: of the file; it need not be there.
        digest: of the feature store.

    Attributes:
        accepted: features.
        open: the batch that was sent last, where it is not known whether it was accepted: source and indexes.
        begun: an earlier process has sent something.

    Raises:
        DataError: the file is damaged, or of another feature store.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self._digest = path, digest
        self.accepted: set[Feature] = set()
        self.open: tuple[str, list[int]] | None = None
        self.begun = False
        whole = path.read_bytes() if path.exists() else b""
        lines = whole[: whole.rfind(b"\n") + 1].splitlines()
        self._whole = whole.rfind(b"\n") + 1
        for number, line in enumerate(lines):
            self._read(parse_json(line, f"{path}: line {number + 1}", self._remove()), number)
        self.begun = len(lines) > 1

    def _remove(self) -> str:
        return f"remove {self.path} to send everything again (a site that has it gets every activation twice)"

    def _read(self, said: Any, number: int) -> None:
        if number == 0:
            if not isinstance(said, dict) or said.get("store") != self._digest:
                raise DataError(
                    f"{self.path}: features of another feature store were sent there, and the site keeps those that it has; "
                    f"give another --set source_set, or, once the source set is empty, {self._remove()}"
                )
            return
        try:
            state, source, indexes = str(said["state"]), str(said["source"]), [int(index) for index in said["indexes"]]
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{self.path}: line {number + 1} is damaged; {self._remove()}") from None
        self._take(state, source, indexes)

    def _take(self, state: str, source: str, indexes: list[int]) -> None:
        self.open = (source, indexes) if state == "sent" else None
        if state == "accepted":
            self.accepted |= {(source, index) for index in indexes}

    def write(self, state: str, source: str, indexes: list[int]) -> None:
        """Say of a batch: sent, accepted, or absent; it is on the disk when this returns."""
        line = json.dumps({"state": state, "source": source, "indexes": indexes}).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._whole:
            line = json.dumps({"store": self._digest}).encode() + b"\n" + line
        with open(self.path, "r+b" if self.path.exists() else "wb") as stream:
            stream.seek(self._whole)
            stream.truncate()
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        self._whole += len(line)
        self._take(state, source, indexes)
