"""Run files: the ids of a run in each logger, by which later stages and a resumed training go on with it.

    {"run_id": MLflow's, "members": {member of the sweep: MLflow's}, "wandb": {"run_id": W&B's, "members": {...}}}

`wandb` is there where W&B has a run, `members` of a sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import read_json, write_json

MLFLOW, WANDB = "mlflow", "wandb"
OTHERS = (WANDB,)  # loggers whose ids lie below their names


def read_ids(path: str | Path, member: str = "") -> dict[str, str]:
    """{logger: id} of the run, or of a member of its sweep; empty if there is no such file or it holds none."""
    found = _read(path)
    ids = {logger: _id(_of(found, logger), member) for logger in (MLFLOW, *OTHERS)}
    return {logger: run_id for logger, run_id in ids.items() if run_id is not None}


def read_run_id(path: str | Path, member: str = "") -> str | None:
    """MLflow's id among those; None: it has none."""
    return read_ids(path, member).get(MLFLOW)


def read_members(path: str | Path) -> list[str]:
    """The members of a sweep that have a run; none without a sweep."""
    members = _read(path).get("members")
    return list(members) if isinstance(members, dict) else []


def write_ids(path: str | Path, ids: Mapping[str, str | None], member: str = "") -> None:
    """Write a run file; that of a member is added to what is there."""
    if not member:
        others = {logger: {"run_id": ids[logger]} for logger in OTHERS if ids.get(logger)}
        write_json(path, {"run_id": ids.get(MLFLOW), **others})
        return
    found = _read(path)
    written = _with(_of(found, MLFLOW), member, ids.get(MLFLOW))
    for logger in OTHERS:
        if ids.get(logger) or isinstance(found.get(logger), dict):
            written[logger] = _with(_of(found, logger), member, ids.get(logger))
    write_json(path, written)


def _with(found: Mapping[str, Any], member: str, run_id: str | None) -> dict[str, Any]:
    members = found.get("members")
    return {"run_id": _id(found), "members": {**(members if isinstance(members, dict) else {}), member: run_id}}


def _of(found: Mapping[str, Any], logger: str) -> Mapping[str, Any]:
    """What a run file says of a logger."""
    own = found if logger == MLFLOW else found.get(logger)
    return own if isinstance(own, dict) else {}


def _id(found: Mapping[str, Any], member: str = "") -> str | None:
    if member:
        members = found.get("members")
        value = members.get(member) if isinstance(members, dict) else None
    else:
        value = found.get("run_id")
    return value if isinstance(value, str) and value else None


def _read(path: str | Path) -> dict[str, Any]:
    try:
        found = read_json(path, "the ids of the tracked run")
    except DataError:
        return {}
    return found if isinstance(found, dict) else {}
