"""Where a local text or model lies: a relative path means the working directory, and then the checkout."""

from __future__ import annotations

from pathlib import Path

from pipeline.files import root


def local_path(name: str) -> Path | None:
    """The file or directory `name`, or None if there is none.

    A queued or temporary experiment runs in a copy of what git knows, where a text beside the checkout's files may be
    missing: it is then looked for in the checkout itself.
    """
    path = Path(name).expanduser()
    return next((place for place in (path, root() / path) if place.exists()), None)


def looked_in() -> str:
    """The directories in which a relative path is looked for, for a message."""
    return " and ".join(dict.fromkeys(str(place) for place in (Path.cwd(), root())))
