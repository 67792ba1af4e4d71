"""Resume points of a run: whole or absent, the newest two kept, damaged ones passed over.

    <directory>/about.json          what the run is: all that changes its weights, to name a difference
    <directory>/step-<n>/           state.safetensors + state.json (digest and size of the former, and what is no tensor)
    <directory>/history.jsonl       one line per log step; a resume point says how many bytes of it are its past
    <directory>/lock                held while a process trains
    <directory>/snapshot-<n>/       weight snapshots (dictionary directories)
    <directory>/finished/           the end of the run: its weights alone, so that lost outputs are written again at once

The directory is named after the fingerprint of `about`, so a run with other parameters has another one. No pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from pipeline.contracts.sealing import sealed, unsealed
from pipeline.errors import CheckpointError, DataError
from pipeline.files import (
    atomic_directory,
    ensure_free_space,
    is_number,
    json_object,
    locked,
    read_json,
    read_object,
    write_json,
)
from pipeline.foreign import reading

FORMAT_VERSION = 2
CODE = "code"  # key of `about`: the digest of the code that runs a step
KEPT = 2
_POINT = re.compile(r"step-(\d+)")


class ResumePoint(NamedTuple):
    """A resume point that was read and is whole.

    Attributes:
        step: steps done.
        tensors: {name: tensor}.
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
        directory: of this run alone.
        about: all that changes its weights, as plain values.

    Attributes:
        keeps: whether anything is written.

    Raises:
        CheckpointError: the directory belongs to a run with other parameters; the message has the differences.
    """

    keeps = True

    def __init__(self, directory: str | Path, about: Mapping[str, Any]) -> None:
        self.directory = Path(directory)
        self.about = json.loads(json.dumps(dict(about)))
        self.history = History(self.directory / "history.jsonl")

    @contextlib.contextmanager
    def opened(self) -> Iterator[Checkpoints]:
        """Hold the run's lock for the block; leftovers of killed writes are removed first.

        Raises:
            DataError: another process holds it.
            CheckpointError: the directory belongs to a run with other parameters.
        """
        with locked(self.directory / "lock", "this training run"):
            for leftover in self.directory.glob(".*.partial*"):
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink(missing_ok=True)
            self._check_about()
            yield self

    @contextlib.contextmanager
    def followed(self) -> Iterator[Checkpoints]:
        """For a process that trains beside the one that keeps the state: what is there is read, nothing is written."""
        yield Followed(self.directory, self.about)

    def _check_about(self) -> None:
        file = self.directory / "about.json"
        if not file.exists():
            write_json(file, self.about)
            return
        found = read_json(file, "the description of the checkpoints", f"remove {self.directory}")
        if found != self.about:
            differences = "; ".join(_differences(found, self.about)) or "its form"
            raise CheckpointError(
                f"{self.directory}: checkpoints of a run with other parameters ({differences}); "
                "move the directory away, or set the parameters back"
            )

    def of_other_code(self) -> Path | None:
        """Where other code has left a resume point or the end of this very run; None: nowhere."""
        for file in sorted(self.directory.parent.glob("*/about.json")):
            place = file.parent
            if place == self.directory or not (any(place.glob("step-*")) or (place / "finished").exists()):
                continue
            with contextlib.suppress(OSError, ValueError, TypeError):
                if {**json.loads(file.read_text()), CODE: None} == {**self.about, CODE: None}:
                    return place
        return None

    def points(self) -> list[int]:
        """Steps of the resume points that exist, newest first, whole or not."""
        found = (_POINT.fullmatch(path.name) for path in self.directory.glob("step-*"))
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Write a resume point and drop all but the newest two.

        Raises:
            DataError: too little space on the device; the earlier points stay.
        """
        self._write(f"step-{step:09d}", step, tensors, extra)
        for old in self.points()[KEPT:]:
            shutil.rmtree(self.directory / f"step-{old:09d}", ignore_errors=True)

    def latest(self) -> tuple[ResumePoint | None, list[str]]:
        """The newest resume point that is whole, and the faults of newer ones.

        Returns: (None, []) where there is none.

        Raises:
            CheckpointError: there are some, all damaged; the message has the faults and what to do.
        """
        faults: list[str] = []
        for step in self.points():
            try:
                return self._read(f"step-{step:09d}"), faults
            except CheckpointError as error:
                faults.append(str(error))
        if faults:
            raise CheckpointError(
                f"{self.directory}: every checkpoint of this run is damaged ({'; '.join(faults)}); "
                "remove the directory and run again from the start"
            )
        return None, []

    def finish(self, step: int, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Keep the end of the run and drop its resume points."""
        self._write("finished", step, tensors, extra)
        for old in self.points():
            shutil.rmtree(self.directory / f"step-{old:09d}", ignore_errors=True)

    def finished(self) -> ResumePoint | None:
        """The end of the run, or None if it has not ended (or what was kept is damaged)."""
        try:
            return self._read("finished") if (self.directory / "finished").exists() else None
        except CheckpointError:
            return None

    def _write(self, name: str, step: int, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        content = save_tensors({key: t.detach().to("cpu").contiguous() for key, t in sorted(tensors.items())})
        ensure_free_space(self.directory, len(content) + 2**20, "a checkpoint")
        about_state = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "history_bytes": self.history.size(),
            "history_sha256": self.history.digest(self.history.size()),
            "extra": dict(extra),
        }
        with atomic_directory(self.directory / name) as temporary:
            (temporary / "state.safetensors").write_bytes(content)
            write_json(temporary / "state.json", sealed(about_state))

    def _read(self, name: str) -> ResumePoint:
        place = self.directory / name
        try:
            about_state = read_object(place / "state.json", "a checkpoint's state")
            if about_state.get("format_version") == FORMAT_VERSION:
                about_state, _ = unsealed(about_state, place / "state.json", "a checkpoint's state", next_action="")
            content = (place / "state.safetensors").read_bytes()
            version, size = about_state["format_version"], about_state["size"]
            if version != FORMAT_VERSION:
                raise CheckpointError(f"{place}: format_version {version}, wanted {FORMAT_VERSION}")
            if len(content) != size:
                raise CheckpointError(f"{place / 'state.safetensors'}: truncated, {len(content):,} of {size:,} bytes")
            if hashlib.sha256(content).hexdigest() != about_state["sha256"]:
                raise CheckpointError(f"{place / 'state.safetensors'}: altered, its sha256 is not the recorded one")
            past = int(about_state["history_bytes"])
            if self.history.size() < past:
                raise CheckpointError(
                    f"{self.history.file}: {self.history.size():,} bytes, {past:,} at step {about_state['step']}"
                )
            if self.history.digest(past) != about_state["history_sha256"]:
                raise CheckpointError(f"{self.history.file}: its first {past:,} bytes are altered")
            with reading(f"{place / 'state.safetensors'}: damaged", kind=CheckpointError):
                tensors = load_tensors(content)
            extra = json_object(about_state["extra"], f"{place / 'state.json'}: extra")
            last = json_object(extra.get("last", {}), f"{place / 'state.json'}: extra.last")
            if wrong := [name for name, value in last.items() if not is_number(value)]:
                raise CheckpointError(f"{place / 'state.json'}: extra.last.{wrong[0]} is no finite number")
            return ResumePoint(int(about_state["step"]), tensors, past, extra)
        except DataError as error:
            raise CheckpointError(str(error).removesuffix("; ")) from None
        except OSError as error:
            raise CheckpointError(f"{place}: {error.filename or ''} cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise CheckpointError(f"{place / 'state.json'}: damaged ({error})") from None

    def snapshot_path(self, step: int) -> Path:
        """Where the weight snapshot after `step` steps is."""
        return self.directory / f"snapshot-{step:09d}"


class Followed(Checkpoints):
    """Those that another process keeps; see :meth:`Checkpoints.followed`."""

    keeps = False

    def __init__(self, directory: str | Path, about: Mapping[str, Any]) -> None:
        super().__init__(directory, about)
        self.history = FollowedHistory(self.history.file)

    def save(self, step: int, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Nothing."""

    def finish(self, step: int, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Nothing."""


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


def _differences(found: Any, wanted: Any, where: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            line
            for key in sorted(set(found) | set(wanted))
            if found.get(key) != wanted.get(key)
            for line in _differences(found.get(key), wanted.get(key), f"{where}.{key}" if where else str(key))
        ]
    return [f"{where} {found!r} there, {wanted!r} here"]


class History:
    """Figures of the log steps: a list in memory, or lines of a file that outlives a kill.

    Args:
        file: JSON lines; None: in memory.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = []

    def resume(self, n_bytes: int) -> None:
        """Drop what was written after the first `n_bytes` bytes, the past of a resume point."""
        if self.file is not None and self.file.exists():
            with open(self.file, "ab") as stream:
                stream.truncate(n_bytes)

    def add(self, row: dict[str, Any]) -> None:
        """Append a log step's figures."""
        if self.file is None:
            self.rows.append(row)
            return
        with open(self.file, "a", encoding="ascii") as stream:
            stream.write(json.dumps(row, sort_keys=True) + "\n")

    def digest(self, n_bytes: int) -> str:
        """sha256 of the file's first `n_bytes` bytes."""
        digest = hashlib.sha256()
        if self.file is not None and n_bytes > 0:
            with open(self.file, "rb") as stream:
                digest.update(stream.read(n_bytes))
        return digest.hexdigest()

    def size(self) -> int:
        """Bytes of the file so far."""
        return self.file.stat().st_size if self.file is not None and self.file.exists() else 0


class FollowedHistory(History):
    """One that another process writes."""

    def resume(self, n_bytes: int) -> None:
        """Nothing."""

    def add(self, row: dict[str, Any]) -> None:
        """Nothing."""
