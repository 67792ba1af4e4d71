"""The Weights & Biases tracker: one run across stages, resumed by its id, never the end of a run.

W&B's own process takes what is logged and sends it or, offline, writes it to wandb/ in the project. Where no server can be
reached, or no key is there, a run is kept offline too, and a line says so.

The id of a run is made here, so that each stage can go on with the run without asking a server: it follows from the id that
the run file keeps and from the DVC experiment. Offline each stage leaves a directory of its own; `wandb sync` joins them.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.files import fingerprint, root
from pipeline.foreign import told
from pipeline.garbage import uncollected
from pipeline.metric_names import grouped
from pipeline.progress import tell
from pipeline.provenance import provenance_tags
from pipeline.tracking.run_file import WANDB
from pipeline.tracking.tracker import FINISHED, STOPPED, Tracker, finite

if TYPE_CHECKING:
    from pipeline.params.sections.tracking import WandbParams

OFFLINE = "offline"
ID_LENGTH = 16
# A server that is down must not hold a stage: seconds for the beginning of a run, and for the rest of its data at the end.
PATIENCE: dict[str, Any] = {"init_timeout": 20.0, "finish_timeout": 60.0, "x_graphql_retry_max": 2}
QUIET: dict[str, Any] = {"silent": True, "console": "off", "disable_code": True}


def open_wandb(
    params: WandbParams, *, stage: str, kept: str | None, name: str, starts: bool, parent: str | None, last_step: int
) -> WandbTracker:
    """The tracker of a run: that which `kept` stands for in this DVC experiment, which is started if it is not there.

    Args:
        params: project, entity, mode.
        stage: groups the metrics.
        kept: what the run file keeps of the run; None: a new run.
        name: name of a new run.
        starts: whether the run may be a new one, so that the name is its own.
        parent: what the run file keeps of the sweep that it is a member of; None: of none.
        last_step: last step that the run of `kept` has; -1: none.
    """
    tracker = WandbTracker(stage, kept or secrets.token_hex(ID_LENGTH // 2), last_step if kept else -1)
    experiment = os.environ.get("DVC_EXP_NAME")
    tracker.attempt(
        "open",
        lambda: tracker.connect(
            params,
            name=name if starts or experiment or kept is None else None,
            group=None if parent is None else f"sweep-{run_id_of(parent, experiment)}",
            run_id=run_id_of(tracker.kept, experiment),
        ),
    )
    return tracker


def run_id_of(kept: str, experiment: str | None) -> str:
    """W&B's id of the run that a run file keeps as `kept`: another one in each DVC experiment, as those share the file."""
    return kept if experiment is None else fingerprint({"run": kept, "experiment": experiment})[:ID_LENGTH]


class WandbTracker(Tracker):
    """Logs to one W&B run; without :meth:`connect`, or where it failed, keeps nothing.

    Attributes:
        kept: what the run file keeps.
        run_id: W&B's id; None if there is no run.
        dropped: number of values that were not finite.
        open_runs: ids of those that are open in this process.
        unreachable: no server answered this process; it asks for none again.
    """

    LOGGER: ClassVar[str] = WANDB
    open_runs: ClassVar[set[str]] = set()
    unreachable: ClassVar[bool] = False

    def __init__(self, stage: str, kept: str, last_step: int) -> None:
        self.stage, self.kept = stage, kept
        self.run_id = None
        self.dropped = 0
        self._run: Any = None
        self._last_step = last_step
        self._warned = False

    @property
    def ids(self) -> dict[str, str]:
        """What stands for the run in every DVC experiment."""
        return {WANDB: self.kept}

    def connect(self, params: WandbParams, *, name: str | None, group: str | None, run_id: str) -> None:
        """Start or resume the run; where no server answers, offline."""
        os.environ.setdefault("WANDB_SILENT", "true")
        with uncollected():
            import wandb

        options: dict[str, Any] = {
            "project": params.project,
            "entity": params.entity,
            "id": run_id,
            "name": name,
            "group": group,
            "dir": str(root().resolve()),
            "resume": "allow",
            "reinit": "create_new",
            "config": {"versions": provenance_tags()},
        }
        self._run = self._started(wandb, params.mode, options)
        self.run_id = self._run.id
        self.open_runs.add(self._run.id)
        self._run.define_metric(f"{grouped(self.stage, '')}*", step_metric=self._step_key)

    def _started(self, wandb: Any, mode: str, options: Mapping[str, Any]) -> Any:
        """The run, as `mode` says, or offline where it cannot be begun on a server."""
        if mode != OFFLINE and not WandbTracker.unreachable:
            try:
                if not wandb.login(prompt=False, verify=False):
                    raise ConnectionError("no API key: `wandb login`, or WANDB_API_KEY")
                return wandb.init(**options, mode=mode, settings=wandb.Settings(**QUIET, **PATIENCE))
            except Exception as error:
                if self.open_runs:
                    raise
                WandbTracker.unreachable = True
                self._say(f"W&B could not be reached ({told(error)}); the run is kept offline in wandb/, for `wandb sync`")
                wandb.teardown()  # W&B's process keeps the id of a run that it could not begin
        return wandb.init(**options, mode=OFFLINE, settings=wandb.Settings(**QUIET, **PATIENCE))

    @property
    def _step_key(self) -> str:
        """The metric that others of this stage are drawn over."""
        return grouped(self.stage, "step")

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log figures of a step as a row, those of the whole run in its summary; a step that the run has is left out."""
        found = finite(self.stage, values)
        self.dropped += len(values) - len(found)
        if step is None:
            self._tell("log", lambda run: run.summary.update(found))
        elif step > self._last_step and found:
            self._tell("log", lambda run: run.log({**found, self._step_key: step}))

    def log_past(self, values: Mapping[str, float], step: int) -> None:
        """Log figures of a step before an interruption, where the run has none of it."""
        self.log_metrics(values, step)
        self._last_step = max(step, self._last_step)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Put parameters into the run's config."""
        self._configure({key: value for key, value in values.items() if key != "tracking"})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Put tags into the run's config, below `tags`."""
        self._configure({f"tags.{key}": value for key, value in tags.items()})

    def describe(self, text: str) -> None:
        """The run's notes."""
        self._tell("describe the run", lambda run: setattr(run, "notes", text))

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Copy a file, or what a directory holds, to the run's files; what does not exist is reported."""
        self._tell(f"keep {path}", lambda run: _save(run, Path(path), folder))

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
        """Put the data set into the run's config, below `data`."""
        about = {"digest": digest, "source": dict(source or {}), "shape": list(shape or ()), "dtype": dtype, "context": context}
        self._configure({f"data.{name}": about})

    def _configure(self, values: Mapping[str, Any]) -> None:
        self._tell("log", lambda run: run.config.update(dict(values), allow_val_change=True))

    def _tell(self, what: str, call: Callable[[Any], None]) -> None:
        if self._run is not None:
            self.attempt(what, lambda: call(self._run))

    def attempt(self, what: str, call: Callable[[], None]) -> None:
        """Call W&B; the first failure is said, and whatever it is, training goes on."""
        try:
            call()
        except Exception as error:
            self._say(f"W&B could not {what} ({told(error)}); going on without it")

    def _say(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            tell(f"warning: tracking: {message}")

    def close(self, status: str = FINISHED) -> None:
        """Send the rest, for a minute at most, and end the run."""
        if self._run is None:
            return
        if self.dropped:
            self.set_tags({f"{self.stage}.dropped_nonfinite": self.dropped})
        code = {FINISHED: 0, STOPPED: 130}.get(status, 1)
        self._tell("end the run", lambda run: run.finish(exit_code=code))
        self.open_runs.discard(self._run.id)
        self._run = None


def _save(run: Any, path: Path, folder: str) -> None:
    """Copy to the directory of the run's files: W&B would link to what the next run changes."""
    files = Path(run.dir)
    target = files / folder if path.is_dir() else files / folder / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(path, target)
    for copied in sorted(each for each in (target.rglob("*") if target.is_dir() else [target]) if each.is_file()):
        run.save(str(copied), base_path=str(files), policy="now")
