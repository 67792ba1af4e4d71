"""Resume points of a run: whole or absent, the newest two kept, damaged ones passed over.

    <directory>/about.json          what the run is: all that changes its weights, to name a difference
    <directory>/step-<n>/           tensors, and a record with their digests and what is no tensor (point_files.py)
    <directory>/history.jsonl       one line per log step; a resume point says how many bytes of it are its past
    <directory>/lock                held while a process trains
    <directory>/snapshot-<n>/       weight snapshots (dictionary directories)
    <directory>/finished/           the end of the run: its weights alone, so that lost outputs are written again at once

The directory is named after the fingerprint of `about`, so a run with other parameters has another one. No pickle.

A resume point is copied where the training stands and written beside it, in a thread. Of several processes each writes its
shards (sharded_points.py); a point is of no number of processes, so another number goes on from it.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from pipeline.distributed.world import World
from pipeline.errors import CheckpointError
from pipeline.files import atomic_directory, differences, ensure_free_space, locked, read_json, write_json
from pipeline.training.history import FollowedHistory, History
from pipeline.training.point_files import (
    check_files,
    file_of,
    read_record,
    read_tensors,
    write_record,
    write_tensors,
)

if TYPE_CHECKING:
    from pipeline.training.sharded_points import Writing

CODE = "code"  # key of `about`: the digest of the code that runs a step
KEPT = 2
FINISHED = "finished"
ALONE = World()
_POINT = re.compile(r"step-(\d+)")


class ResumePoint(NamedTuple):
    """A resume point that was read and is whole.

    Attributes:
        step: steps done.
        tensors: {name: tensor, sharded where it was asked for}.
        history_bytes: length of the history at that point.
        extra: what was saved beside them.
    """

    step: int
    tensors: dict[str, Tensor]
    history_bytes: int
    extra: dict[str, Any]


def check_fit(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse a state with other tensors.

    Raises:
        CheckpointError: names the first one that is missing, unexpected or of another shape.
    """
    for name in sorted(set(own) | set(found)):
        wanted, got = (tuple(t[name].shape) if name in t else None for t in (own, found))
        if wanted != got:
            raise CheckpointError(f"tensor '{name}' has the shape {got}, wanted {wanted}")


class Checkpoints:
    """The resume points of one run.

    Args:
        directory: of this run alone; of several processes, on a disk that all of them see.
        about: all that changes its weights, as plain values.
        world: the processes of the run. They call :meth:`save`, :meth:`latest`, :meth:`finish`, :meth:`finished` and
            :meth:`wait` together; the first one keeps the directory.

    Attributes:
        keeps: whether this process keeps the directory: the lock, the history, the snapshots.

    Raises:
        CheckpointError: the directory belongs to a run with other parameters; the message has the differences.
    """

    def __init__(self, directory: str | Path, about: Mapping[str, Any], world: World = ALONE) -> None:
        self.directory = Path(directory)
        self.about = json.loads(json.dumps(dict(about)))
        self.world, self.keeps = world, world.rank == 0
        self.history = (History if self.keeps else FollowedHistory)(self.directory / "history.jsonl")
        self._writing: Writing | Future[None] | None = None
        self._begun = 0.0  # when that was begun
        self._thread: ThreadPoolExecutor | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[Checkpoints]:
        """Hold the run's lock for the block; leftovers of killed writes are removed first. What is being written at its end is
        waited for.

        Raises:
            DataError: another process holds it, or a point could not be written.
            CheckpointError: the directory belongs to a run with other parameters.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._end_thread)
            if self.keeps:
                stack.enter_context(locked(self.directory / "lock", "this training run"))
                for leftover in self.directory.glob(".*.partial*"):
                    if leftover.is_dir():
                        shutil.rmtree(leftover, ignore_errors=True)
                    else:
                        leftover.unlink(missing_ok=True)
            self._check_about()
            try:
                yield self
            except BaseException:
                with contextlib.suppress(Exception):  # the first fault counts
                    self.wait()
                raise
            self.wait()

    def _end_thread(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _check_about(self) -> None:
        file = self.directory / "about.json"
        if not file.exists():
            if self.keeps:
                write_json(file, self.about)
            return
        found = read_json(file, "the description of the checkpoints", f"remove {self.directory}")
        if found != self.about:
            different = "; ".join(
                f"{where} {there!r} there, {here!r} here" for where, there, here in differences(found, self.about)
            )
            raise CheckpointError(
                f"{self.directory}: checkpoints of a run with other parameters ({different or 'its form'}); "
                "move the directory away, or set the parameters back"
            )

    def of_other_code(self) -> Path | None:
        """Where other code has left a resume point or the end of this very run; None: nowhere."""
        for file in sorted(self.directory.parent.glob("*/about.json")):
            place = file.parent
            if place == self.directory or not (any(place.glob("step-*")) or (place / FINISHED).exists()):
                continue
            with contextlib.suppress(OSError, ValueError, TypeError):
                if {**json.loads(file.read_text()), CODE: None} == {**self.about, CODE: None}:
                    return place
        return None

    def points(self) -> list[int]:
        """Steps of the resume points that exist, newest first, whole or not."""
        found = (_POINT.fullmatch(path.name) for path in self.directory.glob("step-*"))
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def reached(self) -> int:
        """Steps of the end of the run, or of the resume point that it will go on from; 0: neither is there.

        A process calls it by itself. Tensors are not read, so that one whose tensors are damaged counts.
        """
        for name in (FINISHED, *(_name(step) for step in self.points())):
            with contextlib.suppress(CheckpointError):
                return int(read_record(self.directory / name)["step"])
        return 0

    def save(self, step: int, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Copy the state; write a resume point beside the training, and drop all but the newest two.

        Args:
            step: steps done.
            tensors: {name: tensor}, those that are sharded as DTensors.
            extra: plain values to be kept beside them.

        Raises:
            DataError, OSError: an earlier point could not be written (see :meth:`wait`).
        """
        self._begin(_name(step), step, tensors, extra)

    def finish(self, step: int, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Keep the end of the run and drop its resume points.

        Raises:
            DataError, OSError: as :meth:`wait`.
        """
        self._begin(FINISHED, step, tensors, extra)
        self.wait()

    def wait(self) -> None:
        """Until what is being written is there.

        Raises:
            DataError: too little space on the device, or a process did not answer; the earlier points stay.
            OSError: it could not be written; likewise.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        with self.world.answered(self._begun):
            if (error := writing.exception()) is not None:
                raise error

    @property
    def failed(self) -> bool:
        """Whether the last point could not be written, which :meth:`wait` and the next :meth:`save` raise."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def _begin(self, name: str, step: int, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        self.wait()
        self._begun = time.monotonic()
        past = self.history.size() if self.keeps else 0
        about = {
            "step": step,
            "history_bytes": past,
            "history_sha256": self.history.digest(past) if self.keeps else "",
            "extra": dict(extra),
        }
        n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

        def being_written() -> contextlib.AbstractContextManager[tuple[Path, dict[str, dict[str, Any]]]]:
            return self._being_written(name, about, n_bytes)

        if self.world.group is not None:
            from pipeline.training import sharded_points

            self._writing = sharded_points.save(tensors, self.world.group, being_written)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "checkpoint")
        own = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}

        def write() -> None:
            with being_written() as (directory, files):
                files[file_of(0)] = write_tensors(directory / file_of(0), own)

        self._writing = self._thread.submit(write)

    @contextlib.contextmanager
    def _being_written(
        self, name: str, about: Mapping[str, Any], n_bytes: int
    ) -> Iterator[tuple[Path, dict[str, dict[str, Any]]]]:
        """Yield the directory that becomes the point at the end of the block, and where to put down its files."""
        ensure_free_space(self.directory, n_bytes + 2**20, "a checkpoint")
        files: dict[str, dict[str, Any]] = {}
        with atomic_directory(self.directory / name) as directory:
            yield directory, files
            write_record(directory, about, files)
        for old in self.points() if name == FINISHED else self.points()[KEPT:]:
            shutil.rmtree(self.directory / _name(old), ignore_errors=True)

    def latest(self, like: Mapping[str, Tensor] | None = None) -> tuple[ResumePoint | None, list[str]]:
        """The newest resume point that is whole, and the faults of newer ones.

        Args:
            like: {name: tensor}: what is a DTensor there is read as one that is sharded alike; all else is read whole.

        Returns: (None, []) where there is none.

        Raises:
            CheckpointError: there are some, all damaged; the message has the faults and what to do.
        """
        self.wait()
        faults: list[str] = []
        for step in self.world.first(self.points()):
            try:
                return self._read(_name(step), like), faults
            except CheckpointError as error:
                faults.append(str(error))
        if faults:
            raise CheckpointError(
                f"{self.directory}: every checkpoint of this run is damaged ({'; '.join(faults)}); "
                "remove the directory and run again from the start"
            )
        return None, []

    def finished(self, like: Mapping[str, Tensor] | None = None) -> ResumePoint | None:
        """The end of the run, or None if it has not ended (or what was kept is damaged).

        Args:
            like: as of :meth:`latest`.
        """
        self.wait()
        try:
            there = self.world.first((self.directory / FINISHED).exists())
            return self._read(FINISHED, like) if there else None
        except CheckpointError:
            return None

    def past(self) -> dict[str, Any] | None:
        """What was saved beside the end of the run, or beside the resume point that it will go on from; None: neither is there.

        A process calls it by itself. What is damaged is passed over.
        """
        for name in (FINISHED, *(_name(step) for step in self.points())):
            with contextlib.suppress(CheckpointError):
                record = read_record(self.directory / name)
                check_files(self.directory / name, record)
                self._check_history(record)
                extra: dict[str, Any] = record["extra"]
                return extra
        return None

    def _read(self, name: str, like: Mapping[str, Tensor] | None = None) -> ResumePoint:
        """A point, checked by all processes together: each has a look at some of its files."""
        place, world = self.directory / name, self.world
        fault: CheckpointError | None = None
        record: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        try:
            record = read_record(place)
            check_files(place, record, world.rank, world.size)
            if self.keeps:
                self._check_history(record)
        except CheckpointError as error:
            fault = error
        self._agree(fault)
        try:
            if world.size == 1 and len(record["files"]) == 1:
                tensors = read_tensors(place)
            else:
                from pipeline.training import sharded_points

                tensors = sharded_points.load(place, like or {})
        except CheckpointError as error:
            fault = error
        self._agree(fault)
        return ResumePoint(record["step"], tensors, record["history_bytes"], record["extra"])

    def _agree(self, fault: CheckpointError | None) -> None:
        """Raise, in every process, the first fault that one has found.

        Raises:
            CheckpointError: it.
        """
        found = next((text for text in self.world.gathered(None if fault is None else str(fault)) if text is not None), None)
        if found is not None:
            raise CheckpointError(found)

    def _check_history(self, record: Mapping[str, Any]) -> None:
        """Refuse a point whose past is no longer in the history.

        Raises:
            CheckpointError: it is shorter, or altered.
        """
        past = record["history_bytes"]
        if self.history.size() < past:
            raise CheckpointError(f"{self.history.file}: {self.history.size():,} bytes, {past:,} at step {record['step']}")
        if self.history.digest(past) != record["history_sha256"]:
            raise CheckpointError(f"{self.history.file}: its first {past:,} bytes are altered")

    def snapshot_path(self, step: int) -> Path:
        """Where the weight snapshot after `step` steps is."""
        return self.directory / f"snapshot-{step:09d}"


def _name(step: int) -> str:
    return f"step-{step:09d}"


def snapshot_steps(total_steps: int, n: int, schedule: str) -> list[int]:
    """After which steps weight snapshots are taken: `n` of them, the last at the end.

    linear: round(T i / n), i = 1 ... n. log: round(T^(i / n)), so the first ones are close together.
    """
    if n <= 0:
        return []
    n = min(n, total_steps * max(1, math.ceil(math.log(total_steps))))  # with these many, and with more, it is every step
    if schedule == "log":
        steps = {round(total_steps ** (i / n)) for i in range(1, n + 1)}
    else:
        steps = {round(total_steps * i / n) for i in range(1, n + 1)}
    return sorted(step for step in steps if 1 <= step <= total_steps)
