"""What figures can be logged to: each logger by its name, as a function that gives a tracker, or None where it is off.

A logger is a subclass of Tracker in a module of its own, which imports the library late, and a line of LOGGERS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.tracking.run_file import MLFLOW, WANDB
from pipeline.tracking.store_uri import tracking_uri
from pipeline.tracking.tracker import Tracker

if TYPE_CHECKING:
    from pipeline.params.sections.tracking import TrackingParams


@dataclass(frozen=True)
class RunToOpen:
    """The run that a stage logs to.

    Attributes:
        stage: groups the metrics.
        ids: {logger: id} of the run so far.
        name: of a new run.
        starts: whether this stage starts the run, and alone may be writing to it.
        parent: {logger: id} of the run that it is nested in; None: it is in none.
        last_step: last step whose figures were logged before an interruption; -1: none.
    """

    stage: str
    ids: Mapping[str, str]
    name: str
    starts: bool
    parent: Mapping[str, str] | None
    last_step: int


def _mlflow(params: TrackingParams, run: RunToOpen) -> Tracker | None:
    if not params.enabled:
        return None
    uri = tracking_uri(params.tracking_uri)
    from pipeline.tracking.mlflow_runs import Parent, open_mlflow

    return open_mlflow(
        uri,
        experiment=params.experiment_name,
        stage=run.stage,
        run_id=run.ids.get(MLFLOW),
        name=run.name,
        owner=run.starts,
        parent=None if run.parent is None else Parent(run.parent.get(MLFLOW)),
    )


def _wandb(params: TrackingParams, run: RunToOpen) -> Tracker | None:
    if not params.wandb.writes:
        return None
    from pipeline.tracking.wandb_runs import open_wandb

    return open_wandb(
        params.wandb,
        stage=run.stage,
        kept=run.ids.get(WANDB),
        name=run.name,
        starts=run.starts,
        parent=None if run.parent is None else run.parent.get(WANDB, ""),
        last_step=run.last_step,
    )


LOGGERS: Mapping[str, Callable[[TrackingParams, RunToOpen], Tracker | None]] = {MLFLOW: _mlflow, WANDB: _wandb}
