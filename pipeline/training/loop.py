"""The step loop: the same for a store on disk (stages.train) and tensors in memory (api.fit), for one run and for several.

resume each run from its newest whole checkpoint, if any
for each step from that of the run which is the least far: next batch; each run that is so far trains on it; at log steps
report; now and then save; stop when asked

On a CPU two runs take their steps at the same time, each with all of torch's threads: while one works on one thread (selection,
sorting, Python) the other has the cores. Who has ended a step may begin the next one while others are still at theirs; where
something is due after a step (figures, a state to keep) all of them end it first. Bits depend on the number of threads, not on
what runs beside them.

A run that fails (a loss that is not finite, a divergence) ends alone; the others go on.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch

from pipeline import metric_names as names
from pipeline.allocation import keep_freed_memory
from pipeline.dictionaries.base import Dictionary
from pipeline.errors import Interrupted, NumericsError
from pipeline.interrupts import StopRequest, StopWaiting, stop_on_signals
from pipeline.params.sections.trainer import TrainerParams
from pipeline.processes import ONE_PROCESS, Reductions
from pipeline.progress import Progress
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.held import Held, check_memory, held_lines, steps_at_once, told_of_memory
from pipeline.training.kernels import ways_in_words
from pipeline.training.observation import Observation
from pipeline.training.run import Report, Timing, TrainingRun, say
from pipeline.training.shared_batches import joint_batches, joint_dealt, joint_on_device
from pipeline.training.source import Source, TrainingBatch
from pipeline.training.turns import StepsAtOnce, StepsInTurn, Turns, UnderWay

__all__ = ["Report", "Timing", "TrainingRun", "deterministic", "say", "train", "train_together"]
SHOWN = 4  # members whose figures the progress line shows one by one


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
        reductions: over the processes that run this loop at the same time; each reads the whole batches and trains on its part.

    Returns: the run, at its end.

    Raises:
        ParamsError: this device cannot do it, or has no memory for it.
        NumericsError: the loss was not finite, or the run has diverged.
        CheckpointError: every resume point is damaged.
        Interrupted: a signal asked to stop; the state is saved.
    """
    check_memory([(dictionary, source, params, "")])
    run = TrainingRun(
        dictionary,
        source,
        params=params,
        norms=norms,
        total_steps=total_steps,
        checkpoints=checkpoints,
        on_metrics=on_metrics,
        label=label,
        reductions=reductions,
    )
    for error in train_together([run], label=label).values():
        raise error
    return run


def train_together(runs: Sequence[TrainingRun], *, label: str | None = None) -> dict[str, NumericsError]:
    """Train the dictionaries of the runs in place to the end, each batch being read once.

    Args:
        runs: of one number of steps and batches of one size, on one device.
        label: shown before the progress; None: nothing is shown.

    Returns: {name of a run: why it failed} of those that did, the others being at their end.

    Raises:
        ParamsError: memory ran out.
        CheckpointError: every resume point of a run is damaged.
        Interrupted: a signal asked to stop; all states are saved.
    """
    return _Loop(runs, label).to_the_end()


class _Loop:
    """The loop over several runs; see :func:`train_together`."""

    def __init__(self, runs: Sequence[TrainingRun], label: str | None) -> None:
        self.runs, self.label, self.trainer = list(runs), label, runs[0].trainer
        self.active = list(runs)
        self.failed: dict[str, NumericsError] = {}
        self.timing = Timing()
        self.progress: Progress | None = None
        self.turns: Turns = StepsInTurn()
        self.working: TrainingRun = self.runs[0]  # the one whose turn it is
        for run in self.runs:
            run.timing = self.timing

    def to_the_end(self) -> dict[str, NumericsError]:
        """All steps that are left."""
        keep_freed_memory()  # as the stages do; a training in Python too allocates the same tensors in each step
        if len(self.runs) > 1:
            for line in held_lines([_held(run) for run in self.runs]):
                say(self.label, line)
        for line in ways_in_words({run.name: run.way for run in self.runs}):
            say(self.label, line)
        for run in self.runs:
            with self._alone(run):
                run.resume()
        if not self.active:
            return self.failed
        with contextlib.ExitStack() as stack:
            keeps = any(run.checkpoints is not None for run in self.runs)
            stop = stack.enter_context(stop_on_signals()) if keeps else StopRequest()
            tokens, first = self.runs[0].source.batch_tokens, self.runs[0].trainer
            start = min(run.step_number for run in self.active)
            if self.label is not None:
                self.progress = Progress(self.label, first.total_steps * tokens, done=start * tokens)
                stack.callback(self.progress.close)
            at_once = steps_at_once(len(self.active), first.device) if self.trainer.n_processes == 1 else 1
            if at_once > 1:
                self.turns = stack.enter_context(StepsAtOnce(at_once))
            stack.enter_context(told_of_memory(lambda: _held(self.working), lambda: self.working.step_number))
            self._steps(start, first.total_steps, stop)
            for run in list(self.active):
                with self._alone(run):
                    run.end()
        return self.failed

    @contextlib.contextmanager
    def _alone(self, run: TrainingRun) -> Iterator[None]:
        """Within the block the run works; if it fails the others go on without it."""
        self.working = run
        try:
            yield
        except NumericsError as error:
            self.active.remove(run)
            self.failed[run.name] = error
            if self.active:
                say(run.label, f"{error}; the other members go on")

    def _steps(self, start: int, total_steps: int, stop: StopRequest) -> None:
        runs = sorted(
            self.active, key=lambda run: -sum(p.numel() for p in run.dictionary.parameters())
        )  # the longest steps first
        joint = joint_batches([run.source for run in runs], [run.step_number for run in runs])
        if self.trainer.reductions.size > 1:
            joint = joint_dealt(joint, self.trainer.reductions)
        batches = joint_on_device(joint, runs[0].trainer.device, [run.trainer.dtype for run in runs])
        self.timing.start()
        under_way: deque[UnderWay] = deque()
        for s in range(start, total_steps):
            asked = time.perf_counter()
            try:
                # Of several processes none leaves the others waiting at a step that it has not taken.
                with stop.waiting() if self.trainer.n_processes == 1 else contextlib.nullcontext():
                    joint_batch = next(batches)
            except StopWaiting:
                self._end(under_way, left=0)
                self._stop(s, total_steps, stop)
            self.timing.wait += self.turns.idle_since(asked)
            under_way.append(self._begun(s, zip(runs, joint_batch, strict=True), stop))
            self._end(under_way, left=0 if under_way[-1].due or s + 1 == total_steps else self.turns.ahead)
            if s + 1 < total_steps and self._asked(stop):
                self._end(under_way, left=0)
                self._stop(s + 1, total_steps, stop)
            if not self.active:
                break
        batches.close()

    def _asked(self, stop: StopRequest) -> bool:
        """Whether to stop: any process was asked to, before the last step. Several agree likewise on whose state is kept after
        the next step."""
        if self.trainer.n_processes == 1:
            return bool(stop)
        found = [run.agreed() for run in self.active]
        if any(found) and not stop:
            stop.receive("another process's signal")
        return any(found)

    def _begun(self, s: int, batches: Iterable[tuple[TrainingRun, TrainingBatch | None]], stop: StopRequest) -> UnderWay:
        """Begin step s of the runs that are so far, on their batches."""
        here = [(run, batch) for run, batch in batches if batch is not None and run in self.active]
        for run, _ in here:
            run.stop_wanted = bool(stop)
        due = any(run.due(s + 1) for run, _ in here)
        return UnderWay(due, [(run, self.turns.begin(run, batch)) for run, batch in here])

    def _end(self, under_way: deque[UnderWay], *, left: int) -> None:
        """Wait until at most `left` steps are under way; do what is due after those that end."""
        while len(under_way) > left:
            step = under_way.popleft()
            observed: list[tuple[TrainingRun, Observation | None]] = []
            for run, end in step.ends:
                if run in self.active:
                    with self._alone(run):
                        observed.append((run, end()))
            self.timing.step(self.runs[0].source.batch_tokens)
            if step.due:
                for run, observation in observed:
                    with self._alone(run):
                        run.after(observation)
            if self.progress is not None:
                seen = any(observation is not None for _, observation in observed)
                self.progress.update(self.runs[0].source.batch_tokens, **(self._shown() if seen else {}))

    def _stop(self, done: int, total_steps: int, stop: StopRequest) -> NoReturn:
        """Keep the states and stop.

        Raises:
            Interrupted: with what to do.
        """
        for run in list(self.active):
            with self._alone(run):
                if run.step_number == done:
                    run.save(wait=True)
        raise Interrupted(
            f"training: stopped by {stop.received} after step {done:,} of {total_steps:,}; "
            "the state is saved, run the same command again to go on"
        ) from None

    def _shown(self) -> dict[str, float | str]:
        """What the progress line says of the last log steps, behind the step of which it is: others have been since."""
        wait = f"{self.timing.figures()['data_wait_share']:.1%}"
        if len(self.runs) == 1:
            last = self.runs[0].last
            figures = {name: last[name] for name in (names.LOSS, names.EXPLAINED_VARIANCE, names.L0) if name in last}
            return {"at step": self._of_all_steps(last[names.STEP]), **figures, "wait": wait}
        found = {run.name: run.last[names.EXPLAINED_VARIANCE] for run in self.active if names.EXPLAINED_VARIANCE in run.last}
        if len(found) > SHOWN:
            ends = sorted(found, key=lambda name: found[name])
            found = {name: found[name] for name in (ends[0], ends[-1])}
        words = (" ... " if len(self.active) > SHOWN else " | ").join(f"{name} {value:.3f}" for name, value in found.items())
        step = max((run.last[names.STEP] for run in self.active if names.STEP in run.last), default=0)
        return {"at step": self._of_all_steps(step), names.EXPLAINED_VARIANCE: words, "wait": wait}

    def _of_all_steps(self, step: float) -> str:
        """`240 of 976:`, what follows being of that step's batch before its update."""
        return f"{step:,.0f} of {self.trainer.total_steps:,}{'' if step else ' (before training)'}:"


def _held(run: TrainingRun) -> Held:
    return run.dictionary, run.source, run.params, run.name


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
