"""One dictionary's run of the step loop: its state, its steps, what it reports and what it saves."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pipeline import metric_names as names
from pipeline.contracts.sealing import MADE_BY
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.saving import save_dictionary
from pipeline.dictionaries.sharding import of_all, weights_of_all
from pipeline.errors import CheckpointError, NumericsError
from pipeline.params.sections.trainer import TrainerParams
from pipeline.processes import ONE_PROCESS, Reductions
from pipeline.progress import tell
from pipeline.training.checkpoints import Checkpoints, snapshot_steps
from pipeline.training.history import History
from pipeline.training.kernels import Way, check_device, way
from pipeline.training.observation import Observation
from pipeline.training.revival import out_of_reach
from pipeline.training.source import Source, TrainingBatch
from pipeline.training.step import Trainer

LITTLE, MOST = 0.1, 2 / 3  # shares of the time from which on waiting for activations counts, and counts most
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
    _mark: float = 0.0

    def start(self) -> None:
        """The loop begins."""
        self._mark = time.perf_counter()

    def step(self, tokens: int) -> None:
        """A step on so many tokens has ended."""
        before, self._mark = self._mark, time.perf_counter()
        self.total += self._mark - before
        self.tokens += tokens

    def figures(self) -> dict[str, float]:
        """Share of the time spent waiting for data, and tokens per second."""
        total = max(self.total, 1e-9)
        return {"data_wait_share": self.wait / total, "tokens_per_second": self.tokens / total}

    def limit(self) -> str:
        """Where the time of a run on live activations went, and which of the two would make it faster, in words."""
        share = self.figures()["data_wait_share"]
        if share < LITTLE:
            advice = "the language model keeps up, and only faster steps would make this run faster"
        elif share < MOST:
            advice = "both count; activations that are stored would save the waiting at most"
        else:
            advice = "the language model is the slower one; activations that are stored would save the waiting (docs/live.md)"
        return f"waited {share:.0%} of the time for activations, {1.0 - share:.0%} went into the dictionary's steps: {advice}"


class TrainingRun:
    """A dictionary on its way from its initial weights to the end of its steps.

    Args:
        dictionary: on its device, with its initial weights.
        source: batches of raw activations.
        params: trainer's parameters.
        norms: {hook point: norm} of the normalisation.
        total_steps: T.
        checkpoints: opened resume points, used and kept up; None: none.
        on_metrics: called at every log step with its number, its figures and the timing's.
        label: shown before its lines (that revival cannot act); None: nothing is shown.
        name: of the member of a sweep; "": there is one run.
        reductions: over the processes that run this loop at the same time, each with a source of its own rows.

    Attributes:
        last: the figures of the last log step.
        timing: of the loop that it is in.
        stop_wanted: whether this process was asked to stop, which it tells the others in its next step.
        save_asked: whether several processes have agreed to keep the state after the next step.

    Raises:
        ParamsError: this device cannot do it.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        source: Source,
        *,
        params: TrainerParams,
        norms: Mapping[str, Any],
        total_steps: int,
        checkpoints: Checkpoints | None = None,
        on_metrics: Report | None = None,
        label: str | None = None,
        name: str = "",
        reductions: Reductions = ONE_PROCESS,
    ) -> None:
        check_device(dictionary, params.amp_dtype)
        self.source, self.params, self.checkpoints, self.on_metrics = source, params, checkpoints, on_metrics
        self.name, self.label = name, f"{label}: {name}" if label is not None and name else label
        self.trainer = Trainer(
            dictionary, params, total_steps=total_steps, norms=norms, position=source.position, reductions=reductions
        )
        self.history = checkpoints.history if checkpoints is not None else History()
        self.last: dict[str, float] = {}
        self.timing = Timing()
        self.stop_wanted = self.save_asked = False
        self._saved, self._kept = time.monotonic(), -1  # when, and after which step, the state was kept
        self._snapshots = self._snapshot_steps()

    @property
    def dictionary(self) -> Dictionary:
        """What is trained."""
        return self.trainer.dictionary

    @property
    def step_number(self) -> int:
        """Steps done."""
        return self.trainer.step_number

    @property
    def ended(self) -> bool:
        """Whether all steps are done."""
        return self.trainer.step_number == self.trainer.total_steps

    @property
    def way(self) -> Way:
        """How its last step, and all behind the warm-up of k, are computed."""
        return way(self.dictionary, self.params.amp_dtype, self.trainer.gate(self.trainer.total_steps - 1).top_k or 0)

    def resume(self) -> None:
        """Go to the newest whole resume point, and say what cannot be reached.

        Raises:
            CheckpointError: every resume point is damaged, or the newest one does not fit.
            NumericsError: it has diverged, and the resume point is that of its end.
        """
        if (why := out_of_reach(self.dictionary, self.params, self.trainer.total_steps * self.source.batch_tokens)) is not None:
            say(self.label, why)
        self._load()
        self._check_progress()
        self._saved = time.monotonic()

    def _load(self) -> None:
        """Go to the newest whole resume point."""
        if self.checkpoints is None:
            return
        point, faults = self.checkpoints.latest(self.trainer.state())
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
        self.last, self._kept = dict(point.extra.get("last", {})), point.step
        say(self.label, f"going on after step {point.step:,} of {self.trainer.total_steps:,}")

    def step(self, batch: TrainingBatch) -> Observation | None:
        """Train on the next batch; what there is to report of it.

        Raises:
            NumericsError: the loss is not finite (on a GPU: raised by :meth:`after`).
        """
        asks = None
        if self.trainer.n_processes > 1:
            asks = torch.tensor([self.stop_wanted, not self.save_asked and self.time_to_save()])
        return self.trainer.step(batch, observe=self._observed(self.step_number), asks=asks)

    def agreed(self) -> bool:
        """Whether several processes stop here: one of them was asked to before the last step. See `save_asked`, too."""
        if self.trainer.asked is None:
            return False
        stop, self.save_asked = self.trainer.asked.tolist()
        return stop

    def due(self, done: int) -> bool:
        """Whether anything is due when so many steps are done; see :meth:`after`."""
        seen = self._observed(done - 1) or done in self._snapshots or self.trainer.divergence.due(done)
        return seen or self._to_be_saved()

    def _observed(self, s: int) -> bool:
        return s == self.trainer.total_steps - 1 or s % self.params.log_frequency == 0

    def time_to_save(self) -> bool:
        """Whether the state is to be kept by this process's clock, or an earlier one could not be."""
        if self.checkpoints is None:
            return False
        return time.monotonic() - self._saved >= 60 * self.params.checkpoint_minutes or self.checkpoints.failed

    def _to_be_saved(self) -> bool:
        """One process looks at its clock, several have agreed before the step."""
        if self.checkpoints is None or self.checkpoints.world.size > 1:
            return self.save_asked
        return self.time_to_save()

    def after(self, observation: Observation | None) -> None:
        """What is due after a step: report, look whether it has diverged, snapshot; the state where its time has come.

        Raises:
            NumericsError: the loss was not finite, or the run has diverged.
        """
        done = self.step_number
        if observation is not None:
            self.trainer.guard.read()
            self._report(done - 1, observation.figures())
        self._check_progress()
        if done in self._snapshots:
            self._snapshot(done)
        if self._to_be_saved() and not self.ended:
            self.save()

    def end(self) -> None:
        """Look at the last steps; say so if there were too few.

        Raises:
            NumericsError: the loss was not finite.
        """
        self.trainer.guard.read()
        if (lack := self.trainer.too_short()) is not None:
            say(self.label, lack)

    def save(self, wait: bool = False) -> None:
        """Keep the state; nothing is done without checkpoints, or where this step's is kept.

        Args:
            wait: until it is written; else that goes on beside the next steps.

        Raises:
            NumericsError: the loss was not finite.
            DataError, OSError: this state (without `wait`: an earlier one) could not be written.
        """
        if self.checkpoints is None:
            return
        if self.step_number != self._kept:
            self.trainer.guard.read()
            self.checkpoints.save(self.step_number, self.trainer.state(), {"last": self.last})
            self._saved, self._kept = time.monotonic(), self.step_number
        if wait:
            self.checkpoints.wait()

    def _check_progress(self) -> None:
        """Stop a run that has diverged; its state is kept to be looked at.

        Raises:
            NumericsError: what is wrong, and what to change.
        """
        if (fault := self.trainer.diverged()) is None:
            return
        kept = ""
        if self.checkpoints is not None:
            self.save(wait=True)
            kept = f" (its state is kept in {self.checkpoints.directory})"
        raise NumericsError(f"training: diverged: {fault}{kept}")

    def _report(self, s: int, figures: dict[str, float]) -> None:
        self.last = {names.STEP: s, **figures}
        self.history.add(self.last)
        if self.on_metrics is not None:
            self.on_metrics(s, figures | self.timing.figures())

    def _snapshot_steps(self) -> set[int]:
        if self.checkpoints is None:
            return set()
        return set(snapshot_steps(self.trainer.total_steps, self.params.n_checkpoints, self.params.checkpoint_schedule))

    def _snapshot(self, step: int) -> None:
        assert self.checkpoints is not None
        self.trainer.guard.read()
        weights = weights_of_all(self.dictionary, self.checkpoints.keeps)
        if not self.checkpoints.keeps:
            return
        norms = {hook: norm.to_dict() for hook, norm in self.trainer.normalizer.norms.items()}
        about = {"step": step, MADE_BY: "train", "norms": norms}
        save_dictionary(of_all(self.dictionary, weights), self.checkpoints.snapshot_path(step), about)


def say(label: str | None, message: str) -> None:
    """Write a line to standard error; nothing without a label."""
    if label is not None:
        tell(f"{label}: {message}")
