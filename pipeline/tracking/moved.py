"""A project that was moved or copied: MLflow's database holds the absolute place of its artifacts, which is now another one."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

FOLDER = "mlartifacts"
_COLUMNS = (("experiments", "artifact_location"), ("runs", "artifact_uri"))


def artifacts_of(project: Path) -> str:
    """The place of a project's artifacts, as MLflow writes it."""
    return (project.resolve() / FOLDER).as_uri()


def follow(database: Path, project: Path) -> list[str]:
    """Make what a project's own database says of places be of this project, so that a copy does not write into the original.

    Only places that end as a project's do are touched, and only in a database that lies in the project: one that several
    projects share says rightly where the others are.

    Returns:
        the places that were another project's.
    """
    if not database.is_file() or not database.resolve().is_relative_to(project.resolve()):
        return []
    own = artifacts_of(project)
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {table for table, _ in _COLUMNS} <= tables:
            return []
        stated = [place for (place,) in connection.execute("SELECT DISTINCT artifact_location FROM experiments") if place]
        others = [place for place in stated if place.startswith("file:") and place.endswith(f"/{FOLDER}") and place != own]
        for other in others:
            for table, column in _COLUMNS:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (own, len(other) + 1, other, len(other) + 1, f"{other}/"),
                )
    return others
