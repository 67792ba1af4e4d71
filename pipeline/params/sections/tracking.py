"""MLflow and Weights & Biases: no stage's output depends on them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.section import Section, rule
from pipeline.params.sections.dataset import NOT_EMPTY

# What MLflow's databases, its pages and file systems all take.
MLFLOW_NAME = (
    r"[^\s\x00-\x1f\x7f\ud800-\udfff][^\x00-\x1f\x7f\ud800-\udfff]{0,249}",
    "1 to 250 characters, none of them a control character or half a surrogate pair",
)
# What W&B takes as the name of a project, which is a part of its pages' addresses.
PROJECT = (r"[^\s/\\#?%:,\x00-\x1f\x7f\ud800-\udfff]{1,128}", "1 to 128 characters, none of them a space or one of /\\#?%:,")
ENTITY = (r"[A-Za-z0-9_.-]{1,128}", "the name of a W&B user or team (letters, digits, '_', '-' and '.')")
WANDB_MODES = ("online", "offline", "disabled")


@dataclass(frozen=True)
class WandbParams(Section):
    """Runs in Weights & Biases, beside MLflow or in its place."""

    NAME: ClassVar[str] = "tracking.wandb"

    enabled: bool = param(False, about="true: runs go to Weights & Biases too (package wandb)")
    project: str = param("scopeline", form=PROJECT, about="W&B project")
    entity: str | None = param(None, form=ENTITY, also_called=("team", "user"), about="W&B user or team; null: the key's own")
    mode: str = param(
        "online",
        choices=WANDB_MODES,
        about="online | offline (kept in wandb/, for `wandb sync`) | disabled (nothing is written)",
    )

    @property
    def writes(self) -> bool:
        """Whether anything is written."""
        return self.enabled and self.mode != "disabled"

    @rule("enabled")
    def _the_package_is_there(self) -> str | None:
        if not self.writes or _installed("wandb"):
            return None
        return "needs the package wandb, which is not installed here: `pip install 'wandb>=0.31'`, or write false"


@dataclass(frozen=True)
class TrackingParams(Section):
    """MLflow and Weights & Biases; no output depends on them."""

    NAME: ClassVar[str] = "tracking"

    enabled: bool = param(True, about="true: runs go to MLflow; false: not (JSON lines are always written)")
    tracking_uri: str | None = param(None, form=NOT_EMPTY, about="null: $MLFLOW_TRACKING_URI, else mlflow.db in the project")
    experiment_name: str = param("scopeline", form=MLFLOW_NAME, about="MLflow experiment")
    run_name: str | None = param(None, form=MLFLOW_NAME, about="null: the DVC experiment's name")
    wandb: WandbParams = field(default_factory=WandbParams)


def _installed(package: str) -> bool:
    """Whether a package can be imported, without doing so."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # it is named in sys.modules as one that cannot be
        return False
