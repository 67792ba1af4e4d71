"""Where a stage's figures go: nowhere, to JSON lines, to MLflow, or to several at once.

    with open_tracker(params.tracking, stage="train", run_file=Path("data/run.json")) as tracker:
        tracker.log_params(params.to_dict())
        tracker.log_metrics({"l0": 24.0}, step=100)

Tracking never decides a result and never ends a run: a server that is down or a broken database is reported once on
standard error, and the stage goes on. MLflow is imported only if it is enabled (it takes two seconds).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.errors import DataError, Interrupted, ParamsError
from pipeline.files import read_json, root, write_bytes, write_json

if TYPE_CHECKING:
    from pipeline.params.sections.tracking import TrackingParams

STARTING_STAGE = "train"
FINISHED, FAILED, STOPPED = "FINISHED", "FAILED", "KILLED"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https", "databricks", "databricks-uc")


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


class JsonLines(Tracker):
    """One JSON object a step in a file, `{"step": s, name: value, ...}`; no times, so equal runs give equal bytes.

    Args:
        path: the file.
        resume_step: the last step whose lines are kept from an earlier, interrupted run; None: start with an empty file.
    """

    def __init__(self, path: str | Path, resume_step: int | None = None) -> None:
        self.path = Path(path)
        self.dropped = 0
        kept = b"" if resume_step is None else b"".join(raw for raw, row in _lines(self.path) if row["step"] <= resume_step)
        write_bytes(self.path, kept)
        self._stream: TextIO | None = open(self.path, "a", encoding="ascii")  # noqa: SIM115

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Append a line."""
        if self._stream is None:
            return
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        self.dropped += len(values) - len(finite)
        row = {**finite, **({} if step is None else {"step": int(step)})}
        self._stream.write(json.dumps(row, sort_keys=True) + "\n")
        self._stream.flush()

    def flush(self) -> None:
        """Flush to the disk, so that a checkpoint never knows more than the file."""
        if self._stream is not None:
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def close(self, status: str = FINISHED) -> None:
        """Close the file."""
        if self._stream is not None:
            self.flush()
            self._stream.close()
            self._stream = None


class Combined(Tracker):
    """Hands everything to each of several trackers; its run id is the first one that there is."""

    def __init__(self, *parts: Tracker) -> None:
        self.parts = parts
        self.run_id = next((part.run_id for part in parts if part.run_id is not None), None)

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """To each."""
        for part in self.parts:
            part.log_metrics(values, step)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """To each."""
        for part in self.parts:
            part.log_params(values)

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """To each."""
        for part in self.parts:
            part.log_artifact(path, folder)

    def log_dataset(self, name: str, digest: str, **about: Any) -> None:
        """To each."""
        for part in self.parts:
            part.log_dataset(name, digest, **about)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """To each."""
        for part in self.parts:
            part.set_tags(tags)

    def flush(self) -> None:
        """Each."""
        for part in self.parts:
            part.flush()

    def close(self, status: str = FINISHED) -> None:
        """Each."""
        for part in self.parts:
            part.close(status)


def open_tracker(
    params: TrackingParams,
    *,
    stage: str,
    run_file: str | Path,
    history: str | Path | None = None,
    run_id: str | None = None,
    resume_step: int | None = None,
    past: str | Path | None = None,
    name: str | None = None,
) -> Tracker:
    """The tracker of a stage.

    One MLflow run holds a whole chain of stages. `train` starts it (or, resumed, goes on with the one whose id its
    checkpoint has) and writes the id to `run_file`; later stages read it there. Where that run is unknown to the store, or
    belongs to another DVC experiment, a new run takes its place, tagged `continues=<id>`; it is the same for all later stages
    of the experiment.

    Args:
        params: tracking's parameters (enabled, tracking_uri, experiment_name, run_name).
        stage: name of the stage; groups its metrics ("train/l0").
        run_file: JSON {"run_id": id or null}; written by train, read by the others.
        history: JSON lines to write as well.
        run_id: train: the run that its checkpoint belongs to; None: a new one. Other stages: instead of `run_file`.
        resume_step: last step whose figures are kept from before an interruption; None: from the start.
        past: train, resumed: JSON lines of the steps before the interruption; what the run lacks of them (its last buffer, or
            everything if it is a new one in an old one's place) is logged. None: `history`.
        name: name of the run where neither DVC_EXP_NAME nor tracking.run_name gives one.

    Raises:
        ParamsError: the tracking URI is of no kind that MLflow has.
    """
    starts = stage == STARTING_STAGE
    if not starts and run_id is None:
        run_id = read_run_id(run_file)
    uri = tracking_uri(params.tracking_uri) if params.enabled else None
    parts: list[Tracker] = [] if history is None else [JsonLines(history, resume_step)]
    if uri is not None:
        from pipeline.tracking_mlflow import open_mlflow

        mlflow = open_mlflow(
            uri,
            experiment=params.experiment_name,
            stage=stage,
            run_id=run_id,
            name=os.environ.get("DVC_EXP_NAME") or params.run_name or name or stage,
            owner=starts,
        )
        if starts and run_id is not None:
            for row in history_rows(past or history, resume_step):
                mlflow.log_past({key: value for key, value in row.items() if key != "step"}, row["step"])
        parts.append(mlflow)
    tracker = Combined(*parts)
    if starts:
        write_json(run_file, {"run_id": tracker.run_id or run_id})
    return tracker


def read_run_id(path: str | Path) -> str | None:
    """The run id in a run file; None if there is no such file or it holds none."""
    try:
        found = read_json(path, "the id of the tracked run")
    except DataError:
        return None
    value = found.get("run_id") if isinstance(found, dict) else None
    return value if isinstance(value, str) and value else None


def history_rows(path: str | Path | None, last_step: int | None = None) -> Iterator[dict[str, Any]]:
    """The whole lines of a history up to a step (None: all); none where there is no file."""
    if path is not None:
        yield from (row for _, row in _lines(Path(path)) if last_step is None or row["step"] <= last_step)


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Whole lines that have a step, as written and parsed; a line that a kill has cut is left out."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    for raw in content.splitlines(keepends=True):
        try:
            row = json.loads(raw)
        except ValueError:
            continue
        if raw.endswith(b"\n") and isinstance(row, dict) and isinstance(row.get("step"), int):
            yield raw, row


def tracking_uri(stated: str | None) -> str:
    """Where MLflow keeps its runs: as stated, else $MLFLOW_TRACKING_URI, else mlflow.db in the project.

    Relative SQLite paths are of the project (a DVC experiment runs in a temporary directory).

    Raises:
        ParamsError: no kind of store that MLflow has.
    """
    where, uri = "tracking.tracking_uri", stated
    if not uri:
        where, uri = "MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return f"sqlite:///{root().resolve() / 'mlflow.db'}"
    scheme = uri.split(":", 1)[0].lower() if ":" in uri else uri.lower()
    kind = scheme.split("+")[0]
    if kind == "sqlite":
        head, slashes, path = uri.partition(":///")
        if not slashes or not path:
            raise ParamsError(f"{where}: '{uri}' names no file; wanted sqlite:///mlflow.db or sqlite:////absolute/mlflow.db")
        return uri if path.startswith(("/", ":memory:", "file:")) else f"{head}:///{root().resolve() / path}"
    if kind in DATABASES or scheme in SERVERS or _is_plugin(scheme):
        return uri
    if ":" not in uri or kind == "file":
        raise ParamsError(f"{where}: '{uri}' is a directory, which MLflow no longer keeps runs in; wanted sqlite:///mlflow.db")
    known = ", ".join([*DATABASES, *SERVERS])
    raise ParamsError(f"{where}: '{uri}' has no scheme that MLflow knows (known: {known})")


def _is_plugin(scheme: str) -> bool:
    from importlib.metadata import entry_points

    return any(point.name == scheme for point in entry_points(group="mlflow.tracking_store"))
