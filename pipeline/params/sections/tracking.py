"""MLflow: no stage's output depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.section import Section
from pipeline.params.sections.dataset import NOT_EMPTY


@dataclass(frozen=True)
class TrackingParams(Section):
    """MLflow; no output depends on it."""

    NAME: ClassVar[str] = "tracking"

    enabled: bool = param(True, about="false: JSON lines only")
    tracking_uri: str | None = param(None, form=NOT_EMPTY, about="null: $MLFLOW_TRACKING_URI, else mlflow.db in the project")
    experiment_name: str = param("scopeline", form=NOT_EMPTY, about="MLflow experiment")
    run_name: str | None = param(None, form=NOT_EMPTY, about="null: the DVC experiment's name")
