"""Where a stage's figures go: nowhere, to MLflow, to Weights & Biases, or to both.

    with open_tracker(params.tracking, stage="train", run_file=Path("data/run.json")) as tracker:
        tracker.log_params(params.to_dict())
        tracker.log_metrics({"l0": 24.0}, step=100)

Tracking never decides a result and never ends a run: a server that is down or a broken database is reported once on
standard error, and the stage goes on. A logger's library is imported only if it is enabled (it takes two seconds).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import is_number
from pipeline.tracking.loggers import LOGGERS, RunToOpen
from pipeline.tracking.run_file import read_ids, write_ids
from pipeline.tracking.several import Trackers
from pipeline.tracking.tracker import Tracker

if TYPE_CHECKING:
    from pipeline.params.sections.tracking import TrackingParams

STARTING_STAGE = "train"
DRAWN = re.compile(r"[a-z]+-[a-z]+|.+-\d+")  # names that DVC makes: an adjective and a noun, or the one of a grid numbered
MAX_ABOUT = 80


def open_tracker(
    params: TrackingParams,
    *,
    stage: str,
    run_file: str | Path,
    ids: Mapping[str, str] | None = None,
    resume_step: int | None = None,
    past: str | Path | None = None,
    name: str | None = None,
    member: str = "",
    about: str = "",
) -> Tracker:
    """The tracker of a stage, or of a member of the sweep in it.

    In each logger one run holds a whole chain of stages. `train` starts it (or, resumed, goes on with the one whose id its
    checkpoint has) and writes the id to `run_file`; later stages read it there. Where that run is unknown to MLflow's store, or
    belongs to another DVC experiment, a new run takes its place (in MLflow tagged `continues=<id>`); it is the same for all
    later stages of the experiment.

    A member of a sweep has a run of its own: in MLflow nested in that of the sweep, in W&B of one group with the other
    members. `train` opens that of the sweep first, then those of the members, each of which adds its ids to `run_file`.

    Args:
        params: tracking's parameters.
        stage: name of the stage; groups its metrics ("train/l0").
        run_file: see pipeline/tracking/run_file.py; written by train, read by the others.
        ids: {logger: id} of the run that train's checkpoint belongs to; a logger without one starts a new run. Other stages:
            instead of `run_file`.
        resume_step: last step whose figures are kept from before an interruption; None: from the start.
        past: train, resumed: JSON lines of the steps before the interruption; what the run lacks of them (its last buffer, or
            everything if it is a new one in an old one's place) is logged.
        name: name of the run, or of the sweep, where neither DVC_EXP_NAME nor tracking.run_name gives one.
        member: name of the member of a sweep, whose run is `<sweep>/<member>`; "": the run itself.
        about: what tells the run from others, behind a name that does not say it: `name`, or one that DVC has drawn.

    Raises:
        ParamsError: the tracking URI is of no kind that MLflow has.
    """
    starts = stage == STARTING_STAGE
    if ids is None:
        ids = {} if starts else read_ids(run_file, member)
    experiment = os.environ.get("DVC_EXP_NAME")
    run = RunToOpen(
        stage=stage,
        ids=ids,
        name=_name(experiment, params.run_name, name or "" if member else name or stage, about, member),
        starts=starts,
        parent=read_ids(run_file) if member else None,
        last_step=max((row["step"] for row in history_rows(past)), default=-1) if starts else -1,
    )
    opened = [tracker for open_ in LOGGERS.values() if (tracker := open_(params, run)) is not None]
    tracker = opened[0] if len(opened) == 1 else Trackers(opened)
    if starts and opened and (ids or resume_step is not None):
        for row in history_rows(past, resume_step):
            tracker.log_past({key: value for key, value in row.items() if key != "step"}, row["step"])
    if starts:
        write_ids(run_file, {**ids, **tracker.ids}, member)
    return tracker


def _name(experiment: str | None, stated: str | None, name: str, about: str, member: str) -> str:
    """The name of a new run: one that nobody has chosen is followed by what the run is, a member's stands after the sweep's."""
    if member:
        sweep = experiment or stated or name
        return f"{sweep}/{member}" if sweep else member
    chosen = experiment if experiment and not DRAWN.fullmatch(experiment) else None if experiment else stated
    if chosen is not None or not about:
        return chosen or experiment or name
    return f"{experiment or name} ({about if len(about) <= MAX_ABOUT else about[: MAX_ABOUT - 3] + '...'})"


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
