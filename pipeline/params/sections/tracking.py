"""MLflow: no stage's output depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.section import Section
from pipeline.params.sections.dataset import NOT_EMPTY

# What MLflow's databases, its pages and file systems all take.
MLFLOW_NAME = (
    r"[^\s\x00-\x1f\x7f\ud800-\udfff][^\x00-\x1f\x7f\ud800-\udfff]{0,249}",
    "1 to 250 characters, none of them a control character or half a surrogate pair",
)


@dataclass(frozen=True)
class TrackingParams(Section):
    """MLflow; no output depends on it."""

    NAME: ClassVar[str] = "tracking"

    enabled: bool = param(True, about="false: JSON lines only")
    tracking_uri: str | None = param(None, form=NOT_EMPTY, about="null: $MLFLOW_TRACKING_URI, else mlflow.db in the project")
    experiment_name: str = param("scopeline", form=MLFLOW_NAME, about="MLflow experiment")
    run_name: str | None = param(None, form=MLFLOW_NAME, about="null: the DVC experiment's name")
