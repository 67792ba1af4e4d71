"""The MLflow tracker: buffered, one run across stages, never the end of a run.

A run is RUNNING from the first stage to the end of the last one, between the stages too; FAILED or KILLED after a stage that
ended so, until the next one goes on with it. A run that had ended when a stage went on with it ends with that stage.

Metrics, parameters and tags wait in a buffer and go out together (log_batch) about every 900 metrics, at checkpoints and at
the end: a tenth of the cost of one call a step. A call that fails is said once on standard error; what was buffered stays and
is tried again from time to time and at the end.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pipeline.files import root
from pipeline.foreign import told
from pipeline.garbage import uncollected
from pipeline.metric_names import flatten, grouped
from pipeline.progress import tell
from pipeline.provenance import provenance_tags
from pipeline.tracking import mlflow_pages
from pipeline.tracking.moved import artifacts_of, follow
from pipeline.tracking.run_file import MLFLOW
from pipeline.tracking.store_uri import DATABASES
from pipeline.tracking.tracker import FAILED, FINISHED, LAST_STAGE, STOPPED, RunGroup, Tracker

FLUSH_AT = 900  # metrics; a server takes 1,000 a call
MAX_BUFFERED = 200_000  # metrics kept while the server does not answer
PARAMS_A_CALL = 100
MAX_PARAM_LENGTH, MAX_TAG_LENGTH, MAX_DIGEST_LENGTH = 6000, 8000, 36
RETRY_SECONDS = 60.0
LOCK_SECONDS = 120.0
EXPERIMENT_TAG, CONTINUES_TAG = "dvc_exp_name", "continues"
NOTE_TAG = mlflow_pages.NOTE_TAG
PARENT_TAG = "mlflow.parentRunId"  # by which MLflow shows a run below another one
# A server that is down must not hold a stage for the minutes that MLflow's own settings allow.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
# Answers that another try would not change.
FINAL = (
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "ENDPOINT_NOT_FOUND",
)


class Parent(NamedTuple):
    """The run that another one is nested in.

    Attributes:
        run_id: of it, or of the one that it goes on in the place of; None: it is not known.
    """

    run_id: str | None


def open_mlflow(
    uri: str, *, experiment: str, stage: str, run_id: str | None, name: str, owner: bool, parent: Parent | None = None
) -> MlflowTracker:
    """The tracker of a run: the one with `run_id` if this experiment may go on with it, else a new one.

    Args:
        uri: tracking URI.
        experiment: name of MLflow's experiment; made if it is not there.
        stage: groups the metrics.
        run_id: the run so far.
        name: name of a new run.
        owner: whether this stage alone may be writing to `run_id` (train, which holds the lock of its checkpoints): the run is
            said to be stopped if another one goes on in its place.
        parent: the run that it is nested in; None: it is in none.
    """
    tracker = MlflowTracker(stage)
    tracker.attempt("open", lambda: tracker.connect(uri, experiment, run_id, name, owner, parent))
    return tracker


class MlflowTracker(Tracker):
    """Logs to one MLflow run; without :meth:`connect`, or where it failed, keeps nothing.

    Attributes:
        run_id: of the run; None if there is no connection.
        continues: id of the run that this new one takes the place of; None: it does not.
        dropped: number of values that were not finite.
        lost: number of metrics that could not be written.
    """

    LOGGER: ClassVar[str] = MLFLOW

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.run_id = None
        self.continues: str | None = None
        self.dropped = self.lost = 0
        self._client: Any = None
        self._metrics: list[tuple[str, float, int, int]] = []
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._logged: dict[str, str] = {}  # parameters that the run has: they cannot be changed
        self._last_step: dict[str, int] = {}  # of each key, in a run that was interrupted
        self._waiting: list[Callable[[], None]] = []  # artifacts and data sets that failed
        self._retry_at = 0.0
        self._warned = False
        self._closed = False
        self._had_ended = False
        self._experiment_id = self._uri = ""

    def connect(
        self, uri: str, experiment: str, run_id: str | None, name: str, owner: bool, parent: Parent | None = None
    ) -> None:
        """Find or start the run."""
        client, self._uri = _client(uri), uri
        with _first_use(uri):
            _check_database(uri)
            _follow_move(uri)
            self._client = client(tracking_uri=uri)
            self._experiment_id = experiment_id = _experiment(self._client, experiment, uri)
        tags = {key: _shortened(value, MAX_TAG_LENGTH) for key, value in provenance_tags().items()}
        if parent is not None:
            tags |= self._tag_of(parent, experiment_id, tags)
        run = _matching_run(self._client, experiment_id, run_id, tags)
        if run is None:
            if run_id is not None:
                self.continues = run_id
                _say_stopped(self._client, run_id, owner)
            run = self._started(experiment_id, tags, run_id, name)
        else:
            self._had_ended = run.info.status == FINISHED
            self._client.update_run(run.info.run_id, status="RUNNING")
            self._tags = {f"{self.stage}.{k}": v for k, v in tags.items() if run.data.tags.get(k) != v}
            self._logged = dict(run.data.params)
            prefix = grouped(self.stage, "")
            for key in run.data.metrics if owner else ():
                if key.startswith(prefix):
                    self._last_step[key] = max(m.step for m in self._client.get_metric_history(run.info.run_id, key))
        self.run_id = run.info.run_id
        atexit.register(self.close, FAILED)

    def _started(self, experiment_id: str, tags: Mapping[str, str], continues: str | None, name: str) -> Any:
        """A new run, in the place of another one where there is one."""
        went_before = {} if continues is None else {CONTINUES_TAG: continues}
        tags = {"mlflow.source.name": self.stage, "mlflow.source.type": "LOCAL", **tags, **went_before}
        return self._client.create_run(experiment_id, tags=tags, run_name=name)

    def _tag_of(self, parent: Parent, experiment_id: str, tags: Mapping[str, str]) -> dict[str, str]:
        """The tag of a run nested in `parent`, or in the one that goes on in its place, which is started if need be."""
        if parent.run_id is None:
            return {}
        run = _matching_run(self._client, experiment_id, parent.run_id, tags)
        if run is None:
            run = self._started(experiment_id, tags, parent.run_id, tags.get(EXPERIMENT_TAG) or "sweep")
        return {PARENT_TAG: run.info.run_id}

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Buffer metrics; at a step that the run has from before an interruption they are left out."""
        if self.run_id is None or self._closed:
            return
        now, at = int(time.time() * 1000), int(step or 0)
        for name, value in values.items():
            number, key = float(value), grouped(self.stage, name)
            if not math.isfinite(number):
                self.dropped += 1
            elif step is None or at > self._last_step.get(key, -1):
                self._metrics.append((key, number, now, at))
        excess = len(self._metrics) - MAX_BUFFERED
        if excess > 0:
            del self._metrics[:excess]
            self.lost += excess
        if len(self._metrics) >= FLUSH_AT and time.monotonic() >= self._retry_at:
            self.flush()

    def log_past(self, values: Mapping[str, float], step: int) -> None:
        """Log figures of a step before an interruption where the run lacks them; the same step does not come again."""
        self.log_metrics(values, step)
        for name in values:
            key = grouped(self.stage, name)
            self._last_step[key] = max(step, self._last_step.get(key, -1))

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Buffer parameters (those of `tracking` left out); one that the run has with another value becomes a tag."""
        for key, value in flatten(values):
            text = _shortened(value, MAX_PARAM_LENGTH)
            if key.startswith("tracking."):
                continue
            if self._logged.setdefault(key, text) == text:
                self._params[key] = text
            else:
                self._tags[f"{self.stage}.changed.{key}"] = _shortened(value, MAX_TAG_LENGTH)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Buffer tags."""
        self._tags |= {key: _shortened(value, MAX_TAG_LENGTH) for key, value in tags.items()}

    def describe(self, text: str) -> None:
        """The note that MLflow shows above a run."""
        self.set_tags({NOTE_TAG: text})

    def describe_experiment(self, text: str, first: str = "") -> None:
        """The note above the table of runs, which MLflow folds to its first line, unless somebody has written another one."""
        self._now_or_later(
            "describe the experiment",
            lambda: mlflow_pages.describe_experiment(self._client, self._experiment_id, text, first),
        )

    def group_runs(self, groups: Sequence[RunGroup]) -> None:
        """Number the groups, in a tag and in figures of their own of each run, and give each a section of charts."""

        def call() -> None:
            with _first_use(self._uri):  # else two runs that end at once number theirs alike
                mlflow_pages.group_runs(self._client, self._experiment_id, groups)

        self._now_or_later("group the runs", call)

    def log_model(self, name: str, about: Mapping[str, Any], files: Sequence[str | Path]) -> None:
        """A model of the run, which MLflow lists by itself: what it is, and files about it; the weights are not copied."""
        shown = {key: _shortened(value, MAX_PARAM_LENGTH) for key, value in about.items()}
        self._now_or_later(
            f"log the model {name}",
            lambda: mlflow_pages.make_model(self._client, str(self.run_id), name, shown, [str(file) for file in files]),
        )

    def log_model_metrics(self, values: Mapping[str, float]) -> None:
        """Figures of the run's model; those that are not finite are left out."""
        found, now = {key: float(value) for key, value in values.items() if math.isfinite(value)}, int(time.time() * 1000)
        self._now_or_later(
            "log figures of the model",
            lambda: mlflow_pages.log_model_metrics(self._client, str(self.run_id), found, now),
        )

    def rows(self) -> list[dict[str, Any]]:
        """The newest runs of the experiment, this one with what is logged so far."""
        found: list[dict[str, Any]] = []
        if self.run_id is not None and not self._closed:
            self.flush()
            self.attempt("read the runs", lambda: found.extend(mlflow_pages.experiment_rows(self._client, self._experiment_id)))
        return found

    def artifact(self, run_id: str, name: str) -> bytes | None:
        """A file among the artifacts of a run; one that is not there is no fault."""
        found: list[bytes | None] = [None]
        if self.run_id is not None and not self._closed and time.monotonic() >= self._retry_at:
            self.attempt(f"read {name}", lambda: found.append(mlflow_pages.artifact(self._client, run_id, name)))
        return found[-1]

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Copy a file, or what a directory holds, to the run's artifacts; what does not exist is reported."""
        source = str(path)

        def upload() -> None:
            send = self._client.log_artifacts if os.path.isdir(source) else self._client.log_artifact
            send(self.run_id, source, folder or None)

        self._now_or_later(f"keep {path}", upload)

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
        """Show the data set in the run table: what mlflow.data.from_numpy and log_input write, without the array."""

        def log() -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            spec = {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": [-1, *(shape or (0, 0))[1:]]}}
            data = Dataset(
                name=name[:500],
                digest=digest[:MAX_DIGEST_LENGTH],
                source_type="local",
                source=json.dumps(dict(source or {}), sort_keys=True),
                schema=json.dumps({"mlflow_tensorspec": {"features": json.dumps([spec]), "targets": None}}),
                profile=json.dumps({"features_shape": list(shape or ()), "features_size": math.prod(shape or (0,))}),
            )
            self._client.log_inputs(self.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

        self._now_or_later(f"log the data set {name}", log)

    def flush(self) -> None:
        """Write out the buffer; where it fails, keep it for a later try."""
        if self.run_id is None or time.monotonic() < self._retry_at:
            return
        while self._params or self._tags:
            params = dict(list(self._params.items())[:PARAMS_A_CALL])
            tags = dict(list(self._tags.items())[:PARAMS_A_CALL])
            if not self._send(params=params, tags=tags):
                return
            self._params = {key: value for key, value in self._params.items() if key not in params}
            self._tags = {key: value for key, value in self._tags.items() if key not in tags}
        while self._metrics:
            batch = self._metrics[:FLUSH_AT]
            if not self._send(metrics=batch):
                return
            del self._metrics[: len(batch)]

    def _send(
        self,
        metrics: list[tuple[str, float, int, int]] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> bool:
        """One call; True if it is done with, written or refused for good."""

        def call() -> None:
            from mlflow.entities import Metric, Param, RunTag

            self._client.log_batch(
                self.run_id,
                metrics=[Metric(*entry) for entry in metrics or ()],
                params=[Param(key, value) for key, value in (params or {}).items()],
                tags=[RunTag(key, value) for key, value in (tags or {}).items()],
            )

        outcome = self.attempt("log", call)
        if outcome is False and metrics:
            self.lost += len(metrics)
        return outcome is not None

    def _now_or_later(self, what: str, call: Callable[[], None]) -> None:
        if self.run_id is None or self._closed:
            return
        if time.monotonic() < self._retry_at or self.attempt(what, call) is None:
            self._waiting.append(call)

    def attempt(self, what: str, call: Callable[[], None]) -> bool | None:
        """Call MLflow. True: done; False: refused for good; None: failed, another try may work. The first failure is said."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call()
            return True
        except Exception as error:  # whatever it is, training goes on
            final = getattr(error, "error_code", None) in FINAL or isinstance(error, FileNotFoundError)
            if not final:
                self._retry_at = time.monotonic() + RETRY_SECONDS
            if not self._warned:
                self._warned = True
                _warn(f"MLflow could not {what} ({told(error)}); going on without it")
            return False if final else None

    def close(self, status: str = FINISHED) -> None:
        """Write out the rest, try again what failed, and end the run where this stage is its last or has failed."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        if self.run_id is None:
            return
        self._retry_at = 0.0
        if self.dropped:
            self._tags[f"{self.stage}.dropped_nonfinite"] = str(self.dropped)
        self.flush()
        for call in self._waiting if not self._retry_at else ():
            self.attempt("keep an artifact", call)
        ended = status != FINISHED or self.stage == LAST_STAGE or self._had_ended
        if ended and not self._retry_at:
            self.attempt("end the run", lambda: self._client.set_terminated(self.run_id, status))
        self.lost += len(self._metrics)
        if self.lost:
            _warn(f"MLflow run {self.run_id} lacks {self.lost:,} metrics that could not be written")


def _warn(message: str) -> None:
    tell(f"warning: tracking: {message}")


def _client(uri: str) -> Any:
    """MlflowClient's class, imported without telemetry, chatter or long waits."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    for key, value in PATIENCE.items():
        os.environ.setdefault(key, value)
    # MLflow writes the place of its default experiment into SQL as it is; as a URI it has no quotes and no colon.
    os.environ.setdefault("_MLFLOW_SERVER_ARTIFACT_ROOT", (root().resolve() / "mlruns").as_uri())
    with uncollected():
        from mlflow.tracking import MlflowClient

    return MlflowClient


@contextlib.contextmanager
def _first_use(uri: str) -> Iterator[None]:
    """Hold a lock file beside the database: processes that create its tables at once would crash. Servers need none."""
    if uri.split(":", 1)[0].split("+")[0] not in DATABASES:
        yield
        return
    file = _database_file(uri)
    place = root() / "mlflow.db.lock" if file is None else Path(f"{file}.lock")
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place, "a") as stream:
        limit = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise TimeoutError(f"{place} has been locked by another process for {LOCK_SECONDS:.0f} s") from None
                time.sleep(0.05)
        yield


def _database_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").split("?")[0]) if uri.startswith("sqlite:////") else None


def _check_database(uri: str) -> None:
    """Fail at once where SQLite cannot open its file; MLflow tries for minutes."""
    import sqlite3

    file = _database_file(uri)
    if file is not None:
        with contextlib.closing(sqlite3.connect(file, timeout=LOCK_SECONDS)) as database:
            database.execute("PRAGMA schema_version").fetchone()


def _follow_move(uri: str) -> None:
    """Of a project that was moved or copied, let artifacts be kept where it is now."""
    file = _database_file(uri)
    for other in [] if file is None else follow(file, root()):
        _warn(f"the artifacts in {file} were in {other}; this project's are in {artifacts_of(root())} from now on")


def _experiment(client: Any, name: str, uri: str) -> str:
    """Id of the experiment, with its shared view; a new one in a database keeps its artifacts in the project, on a server where
    that says."""
    found = client.get_experiment_by_name(name)
    if found is None:
        local = uri.split(":", 1)[0].split("+")[0] in DATABASES
        with contextlib.suppress(Exception):  # another process may be faster, on a server
            client.create_experiment(name, artifact_location=artifacts_of(root()) if local else None)
        found = client.get_experiment_by_name(name)
        if found is None:
            client.create_experiment(name)  # says why not
    with contextlib.suppress(Exception):  # somebody without the right to change the experiment logs all the same
        mlflow_pages.offer_view(client, found)
    return str(found.experiment_id)


def _matching_run(client: Any, experiment_id: str, run_id: str | None, tags: Mapping[str, str]) -> Any:
    """The run with this id if it is of the same DVC experiment and nested in the same run, or in none, as `tags` say; else the
    one that goes on in its place, else None."""
    if run_id is None:
        return None

    def fits(run: Any) -> bool:
        alike = all(run.data.tags.get(tag) == tags.get(tag) for tag in (EXPERIMENT_TAG, PARENT_TAG))
        return run.info.lifecycle_stage == "active" and alike

    run = _run(client, run_id)
    if run is not None and fits(run):
        return run
    if not run_id.isalnum():
        return None
    others = client.search_runs([experiment_id], f"tags.{CONTINUES_TAG} = '{run_id}'", order_by=["start_time DESC"])
    return next((other for other in others if fits(other)), None)


def _run(client: Any, run_id: str) -> Any:
    """The run, or None if the store does not know it (an id that cannot be one counts as unknown)."""
    try:
        return client.get_run(run_id)
    except Exception as error:
        if getattr(error, "error_code", None) in FINAL:
            return None
        raise


def _say_stopped(client: Any, run_id: str, owner: bool) -> None:
    run = _run(client, run_id) if owner else None
    if run is not None and (run.info.status, run.info.lifecycle_stage) == ("RUNNING", "active"):
        client.set_terminated(run_id, STOPPED)


def _shortened(value: Any, limit: int) -> str:
    """A value as text, as YAML and JSON write it; a long one is cut and carries its length and digest."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
    if len(text) <= limit:
        return text
    end = f"... [{len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}]"
    return text[: limit - len(end)] + end
