"""Where a stage's figures go: nowhere, or to MLflow.

    with open_tracker(params.tracking, stage="train", run_file=Path("data/run.json")) as tracker:
        tracker.log_params(params.to_dict())
        tracker.log_metrics({"l0": 24.0}, step=100)

Tracking never decides a result and never ends a run: a server that is down or a broken database is reported once on
standard error, and the stage goes on. MLflow is imported only if it is enabled (it takes two seconds).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError
from pipeline.files import is_number, read_json, write_json
from pipeline.tracking.store_uri import tracking_uri
from pipeline.tracking.tracker import Tracker

if TYPE_CHECKING:
    from pipeline.params.sections.tracking import TrackingParams

STARTING_STAGE = "train"


def open_tracker(
    params: TrackingParams,
    *,
    stage: str,
    run_file: str | Path,
    run_id: str | None = None,
    resume_step: int | None = None,
    past: str | Path | None = None,
    name: str | None = None,
    member: str = "",
) -> Tracker:
    """The tracker of a stage, or of a member of the sweep in it.

    One MLflow run holds a whole chain of stages. `train` starts it (or, resumed, goes on with the one whose id its
    checkpoint has) and writes the id to `run_file`; later stages read it there. Where that run is unknown to the store, or
    belongs to another DVC experiment, a new run takes its place, tagged `continues=<id>`; it is the same for all later stages
    of the experiment.

    A member of a sweep has a run of its own nested in that one. `train` opens that of the sweep first, then those of the
    members, each of which adds its id to `run_file`.

    Args:
        params: tracking's parameters (enabled, tracking_uri, experiment_name, run_name).
        stage: name of the stage; groups its metrics ("train/l0").
        run_file: JSON {"run_id": id or null}, with a sweep also "members": {name: id or null}; written by train, read by the
            others.
        run_id: train: the run that its checkpoint belongs to; None: a new one. Other stages: instead of `run_file`.
        resume_step: last step whose figures are kept from before an interruption; None: from the start.
        past: train, resumed: JSON lines of the steps before the interruption; what the run lacks of them (its last buffer, or
            everything if it is a new one in an old one's place) is logged.
        name: name of the run where neither DVC_EXP_NAME nor tracking.run_name gives one.
        member: name of the member of a sweep, and of its run; "": the run itself.

    Raises:
        ParamsError: the tracking URI is of no kind that MLflow has.
    """
    starts = stage == STARTING_STAGE
    if not starts and run_id is None:
        run_id = read_run_id(run_file, member)
    uri = tracking_uri(params.tracking_uri) if params.enabled else None
    tracker = Tracker()
    if uri is not None:
        from pipeline.tracking.mlflow_runs import Parent, open_mlflow

        mlflow = open_mlflow(
            uri,
            experiment=params.experiment_name,
            stage=stage,
            run_id=run_id,
            name=member or os.environ.get("DVC_EXP_NAME") or params.run_name or name or stage,
            owner=starts,
            parent=Parent(read_run_id(run_file)) if member else None,
        )
        if starts and (run_id is not None or resume_step is not None):
            for row in history_rows(past, resume_step):
                mlflow.log_past({key: value for key, value in row.items() if key != "step"}, row["step"])
        tracker = mlflow
    if starts:
        write_run_id(run_file, tracker.run_id or run_id, member)
    return tracker


def read_run_id(path: str | Path, member: str = "") -> str | None:
    """The id in a run file of the run, or of a member of its sweep; None if there is no such file or it holds none."""
    found = _read(path)
    if member:
        members = found.get("members")
        found = {"run_id": members.get(member)} if isinstance(members, dict) else {}
    value = found.get("run_id")
    return value if isinstance(value, str) and value else None


def write_run_id(path: str | Path, run_id: str | None, member: str = "") -> None:
    """Write a run file; that of a member is added to what is there."""
    if not member:
        write_json(path, {"run_id": run_id})
        return
    before = _read(path).get("members")
    members = before if isinstance(before, dict) else {}
    write_json(path, {"run_id": read_run_id(path), "members": {**members, member: run_id}})


def _read(path: str | Path) -> dict[str, Any]:
    try:
        found = read_json(path, "the id of the tracked run")
    except DataError:
        return {}
    return found if isinstance(found, dict) else {}


def history_rows(path: str | Path | None, last_step: int | None = None) -> Iterator[dict[str, Any]]:
    """The whole lines of a history that have a step, up to a step (None: all), with what is a number in them; a line that a
    kill has cut is left out."""
    try:
        content = b"" if path is None else Path(path).read_bytes()
    except FileNotFoundError:
        return
    for raw in content.splitlines(keepends=True):
        try:
            row = json.loads(raw)
        except ValueError:
            continue
        whole = raw.endswith(b"\n") and isinstance(row, dict) and isinstance(row.get("step"), int) and is_number(row["step"])
        if whole and (last_step is None or row["step"] <= last_step):
            yield {key: value for key, value in row.items() if is_number(value)}
