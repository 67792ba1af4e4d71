"""The step loop: the same for a store on disk (stages.train) and tensors in memory (api.fit).

resume from the newest whole checkpoint, if any
for each step: next batch; train on it; at log steps report; now and then save; stop when asked
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch

from pipeline import metric_names as names
from pipeline.contracts.sealing import MADE_BY
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.saving import save_dictionary
from pipeline.errors import CheckpointError, Interrupted, NumericsError
from pipeline.interrupts import StopRequest, StopWaiting, stop_on_signals
from pipeline.params.sections.trainer import TrainerParams
from pipeline.progress import Progress
from pipeline.training.checkpoints import Checkpoints, History, snapshot_steps
from pipeline.training.held import check_memory, told_of_memory
from pipeline.training.kernels import check_device, way_in_words
from pipeline.training.processes import ONE_PROCESS, Reductions
from pipeline.training.revival import out_of_reach
from pipeline.training.source import Source, on_device
from pipeline.training.step import Trainer

Report = Callable[[int, dict[str, float]], None]


@dataclasses.dataclass
class Timing:
    """Where the time of a run goes.

    Attributes:
        wait: seconds spent waiting for batches. total: seconds in the loop. tokens: tokens of the steps in it.
    """

    wait: float = 0.0
    total: float = 0.0
    tokens: int = 0

    def figures(self) -> dict[str, float]:
        """Share of the time spent waiting for data, and tokens per second."""
        total = max(self.total, 1e-9)
        return {"data_wait_share": self.wait / total, "tokens_per_second": self.tokens / total}

    def limit(self) -> str:
        """What limits a run on live activations, in words."""
        share = self.wait / max(self.total, 1e-9)
        limit = "the language model" if share > 0.5 else "the dictionary"
        return f"{share:.0%} of the time went into waiting for activations; {limit} limits this run"


def train(
    dictionary: Dictionary,
    source: Source,
    *,
    params: TrainerParams,
    norms: Mapping[str, Any],
    total_steps: int,
    checkpoints: Checkpoints | None = None,
    on_metrics: Report | None = None,
    label: str | None = None,
    reductions: Reductions = ONE_PROCESS,
) -> TrainingRun:
    """Train `dictionary` in place to the end.

    Args:
        dictionary: on its device, with its initial weights.
        source: batches of raw activations.
        params: trainer's parameters.
        norms: {hook point: norm} of the normalisation.
        total_steps: T.
        checkpoints: opened resume points, used and kept up; None: none, and no signal is caught.
        on_metrics: called at every log step with its number, its figures and the timing's.
        label: shown before the progress and other lines (that revival cannot act); None: nothing is shown.
        reductions: over the processes that run this loop at the same time, each with a source of its own rows.

    Returns: the run, at its end.

    Raises:
        ParamsError: this device cannot do it, or has no memory for it.
        NumericsError: the loss was not finite, or the run has diverged.
        CheckpointError: every resume point is damaged.
        Interrupted: a signal asked to stop; the state is saved.
    """
    check_device(dictionary, params.amp_dtype)
    check_memory(dictionary, source, params)
    run = TrainingRun(dictionary, source, params, norms, total_steps, checkpoints, on_metrics, label, reductions)
    say(label, way_in_words(dictionary, params.amp_dtype, run.trainer.gate(total_steps - 1).top_k or 0))
    if (why := out_of_reach(dictionary, params, total_steps * source.batch_tokens)) is not None:
        say(label, why)
    run.resume()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals()) if checkpoints is not None else StopRequest()
        if label is not None:
            done = run.trainer.step_number * source.batch_tokens
            run.progress = Progress(label, total_steps * source.batch_tokens, done=done)
            stack.callback(run.progress.close)
        with told_of_memory(dictionary, source, params, lambda: run.trainer.step_number):
            run.steps(stop)
    return run


class TrainingRun:
    """A run of the loop; see :func:`train`."""

    def __init__(
        self,
        dictionary: Dictionary,
        source: Source,
        params: TrainerParams,
        norms: Mapping[str, Any],
        total_steps: int,
        checkpoints: Checkpoints | None,
        on_metrics: Report | None,
        label: str | None,
        reductions: Reductions,
    ) -> None:
        self.source, self.params, self.checkpoints, self.on_metrics = source, params, checkpoints, on_metrics
        self.label = label
        self.trainer = Trainer(
            dictionary, params, total_steps=total_steps, norms=norms, position=source.position, reductions=reductions
        )
        self.history = checkpoints.history if checkpoints is not None else History()
        self.last: dict[str, float] = {}
        self.timing = Timing()
        self.progress: Progress | None = None

    def resume(self) -> None:
        """Go to the newest whole resume point."""
        if self.checkpoints is None:
            return
        point, faults = self.checkpoints.latest()
        for fault in faults:
            say(self.label, f"passing over a damaged checkpoint: {fault}")
        if point is None:
            self.history.resume(0)
            if (other := self.checkpoints.of_other_code()) is not None:
                say(self.label, f"starting anew: the checkpoint of this run in {other} was made by other code")
            return
        try:
            self.trainer.load(point.tensors, point.step)
        except CheckpointError as error:
            raise CheckpointError(
                f"{self.checkpoints.directory}: the checkpoint after step {point.step} does not fit: {error}; "
                "remove the directory and run again from the start"
            ) from None
        self.history.resume(point.history_bytes)
        self.last = dict(point.extra.get("last", {}))
        say(self.label, f"going on after step {point.step:,} of {self.trainer.total_steps:,}")

    def steps(self, stop: StopRequest) -> None:
        """All steps that are left."""
        trainer, device = self.trainer, self.trainer.device
        snapshots = self._snapshots()
        saved = time.monotonic()
        batches = on_device(self.source.batches(trainer.step_number), device, trainer.dtype)
        self._check_progress()
        for s in range(trainer.step_number, trainer.total_steps):
            started = time.perf_counter()
            try:
                with stop.waiting():
                    batch = next(batches)
            except StopWaiting:
                self._interrupt(stop)
            self.timing.wait += time.perf_counter() - started
            last = s == trainer.total_steps - 1
            observation = trainer.step(batch, observe=last or s % self.params.log_frequency == 0)
            self.timing.total += time.perf_counter() - started
            self.timing.tokens += self.source.batch_tokens
            if observation is not None:
                trainer.guard.read()
                self._report(s, observation.figures())
            if self.progress is not None:
                self.progress.update(self.source.batch_tokens)
            self._check_progress()
            if s + 1 in snapshots:
                self._snapshot(s + 1)
            if self.checkpoints is not None and not last:
                if stop:
                    self._interrupt(stop)
                if time.monotonic() - saved >= 60 * self.params.checkpoint_minutes:
                    self._save()
                    saved = time.monotonic()
        trainer.guard.read()
        batches.close()
        if (lack := trainer.too_short()) is not None:
            say(self.label, lack)

    def _interrupt(self, stop: StopRequest) -> NoReturn:
        """Save the state, and stop.

        Raises:
            Interrupted: after which step.
        """
        self._save()
        raise Interrupted(
            f"training: stopped by {stop.received} after step {self.trainer.step_number:,} of {self.trainer.total_steps:,}; "
            "the state is saved, run the same command again to go on"
        ) from None

    def _check_progress(self) -> None:
        """Stop a run that has diverged; its state is kept to be looked at.

        Raises:
            NumericsError: what is wrong, and what to change.
        """
        if (fault := self.trainer.diverged()) is None:
            return
        kept = ""
        if self.checkpoints is not None:
            self._save()
            kept = f" (its state is kept in {self.checkpoints.directory})"
        raise NumericsError(f"training: diverged: {fault}{kept}")

    def _report(self, s: int, figures: dict[str, float]) -> None:
        self.last = {names.STEP: s, **figures}
        self.history.add(self.last)
        timing = self.timing.figures()
        if self.progress is not None:
            shown = {name: figures[name] for name in (names.LOSS, names.EXPLAINED_VARIANCE, names.L0) if name in figures}
            self.progress.update(0, **shown, wait=f"{timing['data_wait_share']:.1%}")
        if self.on_metrics is not None:
            self.on_metrics(s, figures | timing)

    def _save(self) -> None:
        assert self.checkpoints is not None
        self.trainer.guard.read()
        self.checkpoints.save(self.trainer.step_number, self.trainer.state(), {"last": self.last})

    def _snapshots(self) -> set[int]:
        if self.checkpoints is None:
            return set()
        return set(snapshot_steps(self.trainer.total_steps, self.params.n_checkpoints, self.params.checkpoint_schedule))

    def _snapshot(self, step: int) -> None:
        assert self.checkpoints is not None
        self.trainer.guard.read()
        norms = {hook: norm.to_dict() for hook, norm in self.trainer.normalizer.norms.items()}
        about = {"step": step, MADE_BY: "train", "norms": norms}
        save_dictionary(self.trainer.dictionary, self.checkpoints.snapshot_path(step), about)


def say(label: str | None, message: str) -> None:
    """Write a line to standard error; nothing without a label."""
    if label is not None:
        import sys

        sys.stderr.write(f"{label}: {message}\n")


@contextlib.contextmanager
def deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    """Within the block torch uses deterministic algorithms only, if `wanted`; on a GPU that costs some speed."""
    if not wanted or device.type == "cpu":
        yield  # what the loop uses is deterministic on the CPU with a fixed number of threads
        return
    import os

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before, filled = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    # Off, since it would write every new tensor once more.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
