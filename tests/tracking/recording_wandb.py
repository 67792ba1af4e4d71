"""A double of wandb's public interface, that keeps what it is told: init, login, Settings, and what a run has."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any


class Config(dict):
    """run.config."""

    def update(self, values: dict[str, Any], allow_val_change: bool = False) -> None:
        changed = {key for key, value in values.items() if self.get(key, value) != value}
        if changed and not allow_val_change:
            raise ValueError(f"{changed} of the config change")
        super().update(values)


class Run:
    """One session of a run: what a stage does in it."""

    def __init__(self, options: dict[str, Any], folder: Path) -> None:
        self.id, self.options = options["id"], options
        self.rows: list[dict[str, float]] = []
        self.summary: dict[str, float] = {}
        self.config = Config(options["config"])
        self.axes: dict[str, str] = {}
        self.saved: list[str] = []
        self.notes: str | None = None
        self.exit_code: int | None = None
        self.fails: Exception | None = None
        self.dir = str(folder)

    def log(self, row: dict[str, float]) -> None:
        if self.fails is not None:
            raise self.fails
        self.rows.append(row)

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric

    def save(self, path: str, base_path: str, policy: str) -> None:
        assert policy == "now"
        self.saved.append(str(Path(path).relative_to(base_path)))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class RecordingWandb(ModuleType):
    """The module.

    Attributes:
        runs: the sessions of all runs, in order.
        key: whether there is an API key.
        down: what init raises online.
        in_use: ids of runs that it failed to begin, which its process keeps.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("wandb")
        self.folder = folder
        self.runs: list[Run] = []
        self.key = True
        self.down: Exception | None = None
        self.in_use: set[str] = set()
        self.__spec__ = object()  # type: ignore[assignment]  # by which it counts as installed

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def login(self, prompt: bool, verify: bool) -> bool:
        assert not prompt  # a stage that waits for an answer hangs
        return self.key

    def teardown(self) -> None:
        assert not self.in_use or all(run.exit_code is not None for run in self.runs)  # it would end those that are open
        self.in_use.clear()

    def init(self, **options: Any) -> Run:
        if options["id"] in self.in_use:
            raise RuntimeError(f"run ID {options['id']} is in use")
        if self.down is not None and options["mode"] == "online":
            self.in_use.add(options["id"])
            raise self.down
        folder = self.folder / f"session-{len(self.runs)}"
        folder.mkdir()
        self.runs.append(Run(options, folder))
        return self.runs[-1]

    def of(self, run_id: str) -> list[Run]:
        """The sessions of one run."""
        return [run for run in self.runs if run.id == run_id]
