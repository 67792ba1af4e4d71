"""What a tracker takes: this one keeps nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import Interrupted

FINISHED, FAILED, STOPPED = "FINISHED", "FAILED", "KILLED"


class Tracker:
    """Takes a stage's figures; this one keeps none. A context manager: leaving it closes it with the outcome of the block.

    Attributes:
        run_id: of the MLflow run; None without one.
    """

    run_id: str | None = None

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log {name: number}, at a step or for the whole run. Values that are not finite are dropped and counted."""

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; nested sections become `section.key`."""

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Keep a copy of a file, or of what a directory holds, under `folder`."""

    def log_dataset(
        self,
        name: str,
        digest: str,
        *,
        source: Mapping[str, Any] | None = None,
        shape: tuple[int, ...] | None = None,
        dtype: str = "float32",
        context: str = "training",
    ) -> None:
        """Name the data: `digest` is a fingerprint, `source` says where it comes from, `shape` its rows and columns."""

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Say something of the run that is neither a parameter nor a figure."""

    def flush(self) -> None:
        """Write out what is buffered. Called at checkpoints."""

    def close(self, status: str = FINISHED) -> None:
        """Write out the rest and end the run. A second call does nothing."""

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close(FINISHED)
        else:
            self.close(STOPPED if isinstance(error, (Interrupted, KeyboardInterrupt)) else FAILED)
