"""Several trackers as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.tracking.tracker import FINISHED, RunGroup, Tracker


class Trackers(Tracker):
    """Passes on to each what it is told.

    Attributes:
        run_id: of the first that has a run.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)
        self.run_id = next((each.run_id for each in self.trackers if each.run_id), None)

    @property
    def ids(self) -> dict[str, str]:
        """Those of each."""
        return {logger: run_id for each in self.trackers for logger, run_id in each.ids.items()}

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """To each."""
        for each in self.trackers:
            each.log_metrics(values, step)

    def log_past(self, values: Mapping[str, float], step: int) -> None:
        """To each."""
        for each in self.trackers:
            each.log_past(values, step)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """To each."""
        for each in self.trackers:
            each.log_params(values)

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """To each."""
        for each in self.trackers:
            each.log_artifact(path, folder)

    def log_dataset(self, name: str, digest: str, **about: Any) -> None:
        """To each."""
        for each in self.trackers:
            each.log_dataset(name, digest, **about)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """To each."""
        for each in self.trackers:
            each.set_tags(tags)

    def describe(self, text: str) -> None:
        """To each."""
        for each in self.trackers:
            each.describe(text)

    def log_model(self, name: str, about: Mapping[str, Any], files: Sequence[str | Path]) -> None:
        """To each."""
        for each in self.trackers:
            each.log_model(name, about, files)

    def log_model_metrics(self, values: Mapping[str, float]) -> None:
        """To each."""
        for each in self.trackers:
            each.log_model_metrics(values)

    def rows(self) -> list[dict[str, Any]]:
        """Those of the first that knows any."""
        return next((rows for each in self.trackers if (rows := each.rows())), [])

    def artifact(self, run_id: str, name: str) -> bytes | None:
        """Of the first that has it."""
        return next((found for each in self.trackers if (found := each.artifact(run_id, name)) is not None), None)

    def describe_experiment(self, text: str, first: str = "") -> None:
        """To each."""
        for each in self.trackers:
            each.describe_experiment(text, first)

    def group_runs(self, groups: Sequence[RunGroup]) -> None:
        """To each."""
        for each in self.trackers:
            each.group_runs(groups)

    def flush(self) -> None:
        """Each."""
        for each in self.trackers:
            each.flush()

    def close(self, status: str = FINISHED) -> None:
        """Each."""
        for each in self.trackers:
            each.close(status)
