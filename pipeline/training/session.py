"""The train stage's work: open what it reads, train or go on, write what it leaves.

    data/trained/<name>/           config.json + weights.safetensors
    metrics/train.json             figures of the last step, and what the run was
    metrics/train_history.jsonl    figures of the log steps
    metrics/plots/training/        their curves
    data/run.json                  id of the tracked run (written by the tracker)

Of a sweep all members are trained in one pass; their dictionaries are in data/trained/<name>/<member>/, their figures under
the member's name.

Checkpoints are in $DVC_ROOT/data/checkpoints/<fingerprint>/, of a member those of the same dictionary trained alone. A run
whose end is kept there is not trained again: its outputs are written.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.activations.interface import Activations
from pipeline.dictionaries.sharding import weights_of_all
from pipeline.distributed.group import mesh, world
from pipeline.errors import NumericsError, of_member
from pipeline.files import ensure_writable, fingerprint, root
from pipeline.norms.hook_norm import read_norms
from pipeline.opening import open_for
from pipeline.params.choices import LIVE
from pipeline.params.schema import Params
from pipeline.processes import ONE_PROCESS, Reductions
from pipeline.tracking.tracker import Tracker
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.device import training_device
from pipeline.training.held import check_memory
from pipeline.training.loop import deterministic, train_together
from pipeline.training.member import Member, open_member
from pipeline.training.model_loss import ContextSource, with_model_loss
from pipeline.training.outputs import Ended, Places, write_outputs
from pipeline.training.run import TrainingRun, say
from pipeline.training.source import Source, StoreSource
from pipeline.training.tracked import tracked

LABEL = "train"
Opened = Mapping[str, tuple[Member, Checkpoints]]


def train_dictionaries(
    params: Params,
    places: Places,
    processes: Reductions = ONE_PROCESS,
    begins: Callable[[tuple[int, ...]], None] = lambda steps_left: None,
) -> dict[str, Any]:
    """Train `places.initial` (of a sweep, each member's) on the store, from its checkpoint if it has one; write the outputs.

    Args:
        params: all parameters.
        places: what is read and written.
        processes: those that train together, data_parallel_size times model_parallel_size. The first one keeps the state,
            tracks and writes the outputs.
        begins: called by the first process, before the first step, with the steps that are left of each training.

    Returns: the figures of metrics/train.json; of other processes than the first none.

    Raises:
        DataError, CheckpointError, NumericsError, ParamsError: as the message says. Members of a sweep whose training failed
            are named when the others are at their end, which their checkpoints keep.
        Interrupted: stopped by a signal; the state is saved.
    """
    ensure_writable(checkpoint_root := root() / "data" / "checkpoints", "checkpoints")
    rows, features = mesh(processes, params.distributed)
    store, members = open_members(params, places, features)
    first = processes.rank == 0
    with contextlib.ExitStack() as stack:
        opened = _with_checkpoints(members, checkpoint_root, stack)
        if first:
            begins(_steps_left(opened, params.total_steps))
            for line in _live_lines(params, next(iter(members.values())).source) if store.source == LIVE else ():
                say(LABEL, line)
        stack.enter_context(deterministic(params.determinism, next(iter(members.values())).device))
        trackers = stack.enter_context(tracked(params, places, opened, store)) if first else _untracked(opened)
        ended = _train(params, opened, trackers, rows, first)
        if not first:
            return {}
        figures = write_outputs(ended, places, params.sweep is not None)
        _log_outputs(trackers, figures, places)
    return figures if params.sweep is not None else figures[""]


def open_members(
    params: Params, places: Places, feature_group: Reductions = ONE_PROCESS
) -> tuple[Activations, dict[str, Member]]:
    """The activations, and {name: what is to be trained}, its features dealt; `places` has what is read."""
    device = training_device(params.activations.device or params.model.device, "activations.device")
    store = open_for(params, places.activations)
    norms, origin = read_norms(places.norms)
    inputs = {**store.made_from(), "norms": origin.digest}
    origin.check(places.norms, "norm", inputs)
    members = {}
    for name, own in params.members.items():
        with of_member(name):
            members[name] = open_member(name, own, places.initial / name, store, norms, inputs, device, feature_group)
    return store, members


def _untracked(opened: Opened) -> dict[str, Tracker]:
    return {name: Tracker() for name in ("", *opened)}


def _with_checkpoints(members: Mapping[str, Member], directory: Path, stack: contextlib.ExitStack) -> Opened:
    """The members with their checkpoints, held by the stack. Members whose trainings are the same have the same ones."""
    found: dict[Path, Checkpoints] = {}
    opened = {}
    for name, member in members.items():
        place = directory / fingerprint(member.about)
        if place not in found:
            found[place] = stack.enter_context(Checkpoints(place, member.about, world()).opened())
        opened[name] = member, found[place]
    return opened


def _steps_left(opened: Opened, total_steps: int) -> tuple[int, ...]:
    """Of each training the steps that are still to be taken, by the newest point that it has kept."""
    trainings = {checkpoints.directory: checkpoints for _, checkpoints in opened.values()}
    return tuple(total_steps - checkpoints.reached() for checkpoints in trainings.values())


def _train(params: Params, opened: Opened, trackers: Mapping[str, Tracker], rows: Reductions, first: bool) -> list[Ended]:
    """Bring the dictionaries to the end of their runs; what each has come to, with the weights of all features.

    Raises:
        NumericsError: which members failed.
    """
    runs: dict[Path, TrainingRun] = {}
    unfinished: dict[Path, tuple[Member, Checkpoints]] = {}
    for member, checkpoints in opened.values():
        if checkpoints.finished() is None:
            unfinished.setdefault(checkpoints.directory, (member, checkpoints))
    if unfinished:
        runs = _runs(params, list(unfinished.values()), opened, trackers, rows, first)
        failed = train_together(list(runs.values()), label=LABEL if first else None)
        _keep_ends([run for run in runs.values() if run.name not in failed], params.activations.source == LIVE and first)
        faults = [
            f"sweep.{name}: {fault}" if name else fault
            for name, (_, checkpoints) in opened.items()
            if checkpoints.directory in runs and (error := failed.get(runs[checkpoints.directory].name)) is not None
            for fault in error.faults
        ]
        if faults:
            raise NumericsError(faults)
    ended: list[Ended] = []
    for name, (member, checkpoints) in opened.items():
        run = runs.get(checkpoints.directory)
        dealt = member.dictionary.feature_group.size > 1
        if run is not None and run.name == name and not dealt:
            ended.append(Ended(member, checkpoints, run.last))
            continue
        done = checkpoints.finished()
        assert done is not None  # it was before, or is the end of a run here
        if name and run is None and first:
            say(LABEL, f"{name}: trained already, its end is taken from {checkpoints.directory}")
        if dealt:
            member = dataclasses.replace(member, dictionary=member.dictionary.rebuilt(done.tensors))
        else:
            member.dictionary.load_weights_({key: tensor.to(member.device) for key, tensor in done.tensors.items()})
        ended.append(Ended(member, checkpoints, done.extra["last"]))
    return ended


def _runs(
    params: Params,
    unfinished: Sequence[tuple[Member, Checkpoints]],
    opened: Opened,
    trackers: Mapping[str, Tracker],
    rows: Reductions,
    first: bool,
) -> dict[Path, TrainingRun]:
    """{directory of the checkpoints: the run} of what has not ended."""
    check_memory([(member.dictionary, member.source, member.trainer, member.name) for member, _ in unfinished])
    return {
        checkpoints.directory: TrainingRun(
            member.dictionary,
            _batches(member, params.total_steps, rows, first),
            params=member.trainer,
            norms=member.normalizer.norms,
            total_steps=params.total_steps,
            checkpoints=checkpoints,
            on_metrics=_logging([trackers[name] for name, (_, own) in opened.items() if own is checkpoints]),
            label=LABEL if first else None,
            name=member.name,
            reductions=rows,
        )
        for member, checkpoints in unfinished
    }


def _batches(member: Member, total_steps: int, rows: Reductions, first: bool) -> Source:
    """What the member is trained on; the first process says what a loss through the language model costs."""
    batches = with_model_loss(member.source, member.trainer, total_steps, rows)
    if isinstance(batches, ContextSource) and first:
        say(LABEL, batches.cost())
    return batches


def _keep_ends(ended: Sequence[TrainingRun], live: bool) -> None:
    """Keep the weights at the end of the runs, so that they are not trained again."""
    for run in ended:
        assert run.checkpoints is not None
        run.checkpoints.finish(run.step_number, weights_of_all(run.dictionary), {"last": run.last})
    if ended and live:
        say(LABEL, ended[0].timing.limit())


def _logging(trackers: list[Tracker]) -> Callable[[int, dict[str, float]], None]:
    def log(step: int, figures: dict[str, float]) -> None:
        for tracker in trackers:
            tracker.log_metrics(figures, step)

    return log


def _log_outputs(trackers: Mapping[str, Tracker], figures: Mapping[str, Mapping[str, Any]], places: Places) -> None:
    """Figures and plots of each member to its run, the stage's files to that of the stage."""
    for name, found in figures.items():
        trackers[name].log_metrics({key: value for key, value in found.items() if isinstance(value, (int, float))})
        if name:
            trackers[name].log_artifact(places.plots / name, "plots/training")
    for path in (places.metrics, places.history):
        trackers[""].log_artifact(path, "metrics")
    trackers[""].log_artifact(places.plots, "plots/training")


def _live_lines(params: Params, source: StoreSource) -> list[str]:
    """What a training on live activations costs: how often the language model runs over the text."""
    per_epoch = source.store.batches_per_epoch(source.batch_size, source.rows)
    n_rows = source.rows[1] - source.rows[0]
    epochs = params.total_steps / max(per_epoch, 1)
    tokens = n_rows * source.store.n_tokens // source.store.n_rows
    lines = [f"live activations of {tokens:,} tokens; the first batch comes when a window of activations.buffer_size is filled"]
    if epochs > 1:
        kept = params.activations.buffer_size >= tokens
        once = "they are kept in one window, and the language model runs once" if kept else "the language model runs in each"
        lines.append(f"trainer.total_training_tokens is {epochs:.2f} epochs of them; {once}")
    return lines
