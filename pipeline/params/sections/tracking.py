"""MLflow: no stage's output depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.section import Section
from pipeline.params.sections.dataset import NOT_EMPTY


@dataclass(frozen=True)
class TrackingParams(Section):
    """Fields: see the comments of params.yaml."""

    NAME: ClassVar[str] = "tracking"

    enabled: bool = param(True)
    tracking_uri: str | None = param(None, form=NOT_EMPTY)
    experiment_name: str = param("scopeline", form=NOT_EMPTY)
    run_name: str | None = param(None, form=NOT_EMPTY)
