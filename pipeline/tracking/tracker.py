"""What a tracker takes: this one keeps nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple

from pipeline.errors import Interrupted
from pipeline.metric_names import grouped

FINISHED, FAILED, STOPPED = "FINISHED", "FAILED", "KILLED"
LAST_STAGE = "analyze"  # with which a run ends; between the stages before it the run goes on


class RunGroup(NamedTuple):
    """Runs that can be compared with each other, and with no others.

    Attributes:
        about: what they have in common, in words.
        figures: {id of a run: {name: what it is compared by}}.
    """

    about: str
    figures: Mapping[str, Mapping[str, float]]


class Tracker:
    """Takes a stage's figures; this one keeps none. A context manager: leaving it closes it with the outcome of the block.

    Attributes:
        LOGGER: name of what it logs to, under which a run file has its run; "": nothing.
        run_id: of its run; None without one.
    """

    LOGGER: ClassVar[str] = ""
    run_id: str | None = None

    @property
    def ids(self) -> dict[str, str]:
        """{logger: what a run file keeps, by which a later stage finds the run}."""
        return {self.LOGGER: self.run_id} if self.LOGGER and self.run_id else {}

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log {name: number}, at a step or for the whole run. Values that are not finite are dropped and counted."""

    def log_past(self, values: Mapping[str, float], step: int) -> None:
        """Log figures of a step before an interruption where the run lacks them; the same step does not come again."""

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log parameters (those of `tracking` left out); nested sections become `section.key`."""

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

    def describe(self, text: str) -> None:
        """The description of the run, in Markdown."""

    def log_model(self, name: str, about: Mapping[str, Any], files: Sequence[str | Path]) -> None:
        """Say that the run has made a model: its name, what it is, and small files that describe it."""

    def log_model_metrics(self, values: Mapping[str, float]) -> None:
        """Log figures of the model that the run has made."""

    def rows(self) -> list[dict[str, Any]]:
        """This run and those beside it, as rows that :func:`pipeline.plots.experiment.read_experiment` reads, each with its id,
        "run"; empty where nothing knows them."""
        return []

    def artifact(self, run_id: str, name: str) -> bytes | None:
        """What a run of :meth:`rows` has kept under a name; None: it has nothing there, or cannot be asked."""
        return None

    def describe_experiment(self, text: str, first: str = "") -> None:
        """The description of all runs together, in Markdown; `first` is a sentence that is seen without opening it."""

    def group_runs(self, groups: Sequence[RunGroup]) -> None:
        """Say which of all runs can be compared, the newest group first, so that no chart has others beside them."""

    def flush(self) -> None:
        """Write out what is buffered. Called at checkpoints."""

    def close(self, status: str = FINISHED) -> None:
        """Write out the rest and end what the stage says of the run. A second call does nothing."""

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close(FINISHED)
        else:
            self.close(STOPPED if isinstance(error, (Interrupted, KeyboardInterrupt)) else FAILED)


def finite(stage: str, values: Mapping[str, float]) -> dict[str, float]:
    """{name in its group: number} of those that are finite numbers."""
    numbers = {grouped(stage, name): float(value) for name, value in values.items()}
    return {key: number for key, number in numbers.items() if math.isfinite(number)}
