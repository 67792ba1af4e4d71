"""Paths of the Hugging Face hub: hf:user/repository/folder@revision."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError

PREFIX = "hf:"
ADVICE = "write hf:user/repository/folder@revision, or give a local directory in the same layout"
_PLACE = re.compile(r"hf:(?://)?([\w.-]+/[\w.-]+)(?:/([^@]*))?(?:@([^@\s]+))?")


@dataclass(frozen=True)
class HubPath:
    """What a path of the hub names.

    Attributes:
        repository: user/repository.
        folder: inside it, or a file; "": the repository itself.
        revision: branch, tag or commit; None: the default branch.
    """

    repository: str
    folder: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        folder = f"/{self.folder}" if self.folder else ""
        return f"{PREFIX}{self.repository}{folder}" + (f"@{self.revision}" if self.revision else "")

    def at(self, folder: str) -> HubPath:
        """The same repository and revision, another folder."""
        return HubPath(self.repository, folder, self.revision)


def is_of_hub(path: str | Path) -> bool:
    """Whether a path begins as one of the hub does."""
    return str(path).startswith(PREFIX)


def hub_path(text: str | Path) -> HubPath:
    """The parts of a path of the hub.

    Raises:
        DataError: it is none.
    """
    match = _PLACE.fullmatch(str(text))
    folder = (match[2] or "").strip("/") if match else ""
    if match is None or any(part in ("", ".", "..") for part in folder.split("/") if folder):
        raise DataError(f"{text}: not a path of the hub; {ADVICE}")
    return HubPath(match[1], folder, match[3])
