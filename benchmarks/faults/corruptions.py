"""Damage every file that a stage reads, run the stage, and see whether it says so.

On a tiny project that has run to its end, one file is damaged in one way, the stage is run again in a process of its own, and
what it wrote is compared with what the undamaged project writes: refused, harmless (the outputs are the same, byte for byte),
said (an output is another one, and a line that the undamaged run does not print says what was found), SILENT (no such line) or
TRACEBACK (anything else). Checkpoints are damaged before a training that goes on from them.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.cases import HARMLESS, REFUSED, SAID, SILENT, TRACEBACK, Case, is_refused, said
from benchmarks.faults.forked import run_forked, run_stage
from pipeline.params.reading import read_mapping
from pipeline.progress import Progress
from tests.project import STAGES, Project, make_project

TITLE = "Damaged files"
ABOUT = """Each case damages one file that a stage reads (a bit, a digit, the end, all of it, a block of zeros, another file in
its place, something appended) and runs the stage. Harmless: what it writes is the same, byte for byte."""
VERDICTS = (REFUSED, HARMLESS, SAID, SILENT, TRACEBACK)
# Stage -> globs of what it reads.
READS = {
    "tokenize_corpus": ("text.jsonl", "model/*"),
    "generate_activations": ("data/tokens.zarr/**/*", "model/*", "data/store/**/*"),
    "compute_norm": ("data/activations.json", "data/store/**/*"),
    "initialize": ("data/activations.json", "data/norms.json", "data/store/**/*"),
    "train": (
        "data/activations.json", "data/norms.json", "data/initial/main/*", "data/store/**/*", "data/checkpoints/**/*",
        "data/checkpoints/*/step-*/*", "metrics/*.json",
    ),
    "fold_norm": ("data/activations.json", "data/norms.json", "data/trained/main/*", "data/store/**/*"),
    "evaluate": (
        "data/inference/main/*", "data/norms.json", "data/norm_statistics.safetensors", "data/tokens.zarr/**/*", "model/*",
    ),
    "analyze": ("data/inference/main/*", "data/norms.json", "data/tokens.zarr/**/*", "model/*"),
}  # fmt: skip
TRACKED = ("mlflow.db", "data/run.json", "metrics/*.json", "metrics/*.jsonl")  # where runs are tracked
WRITES = {
    "tokenize_corpus": ("data/tokens.zarr",),
    "generate_activations": ("data/activations.json", "data/store"),
    "compute_norm": ("data/norms.json", "data/norm_statistics.safetensors"),
    "initialize": ("data/initial",),
    "train": ("data/trained", "metrics/train.json", "metrics/train_history.jsonl"),
    "fold_norm": ("data/inference", "metrics/fold.json"),
    "evaluate": ("metrics/evaluation.json",),
    "analyze": ("data/features",),
}
# What transformers reads of a model only now and then, and what a store keeps beside its content.
NOT_CONTENT = (".lock", "lock", ".md")
INPUT = ("text.jsonl",)  # changed text is other text, not damage


def flip(path: Path, draw: random.Random) -> None:
    """One bit."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def digit(path: Path, draw: random.Random) -> None:
    """One digit of a text becomes another; of a binary file, one byte."""
    content = bytearray(path.read_bytes())
    places = [i for i, byte in enumerate(content) if chr(byte).isdigit()] or range(len(content))
    place = draw.choice(places)
    content[place] = ord(str((content[place] + draw.randrange(1, 9)) % 10))
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    """The end is missing."""
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def empty(path: Path, draw: random.Random) -> None:
    """Nothing is left."""
    path.write_bytes(b"")


def lose(path: Path, draw: random.Random) -> None:
    """The file is gone."""
    path.unlink()


def append(path: Path, draw: random.Random) -> None:
    """Something follows."""
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randrange(1, 64)))


def other(path: Path, draw: random.Random) -> None:
    """Another file of the same folder in its place."""
    others = [each for each in path.parent.iterdir() if each.is_file() and each.read_bytes() != path.read_bytes()]
    path.write_bytes(draw.choice(others).read_bytes() if others else draw.randbytes(64))


def zeros(path: Path, draw: random.Random) -> None:
    """A block of zeros, as a lost sector."""
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content))
    stop = min(start + 512, len(content))
    content[start:stop] = bytes(stop - start)
    path.write_bytes(content)


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (flip, flip, digit, digit, cut, empty, lose, append, other, zeros)


def hashes(project: Path, stage: str) -> dict[str, str]:
    """sha256 of every file that the stage writes."""
    files = [
        file
        for place in WRITES[stage]
        for path in [project / place]
        for file in ([path] if path.is_file() else path.rglob("*"))
    ]
    kept = [file for file in files if file.is_file() and not file.name.endswith(NOT_CONTENT)]
    return {file.relative_to(project).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(kept)}


@dataclass(frozen=True)
class Area:
    """A stage on a project that has all that it reads, and what it does there undamaged.

    Attributes:
        name: of the area.
        stage: that is run.
        project: copied for each case.
        reads: globs of what is damaged.
        written: {output: sha256}.
        lines: that it says.
    """

    name: str
    stage: str
    project: Project
    reads: tuple[str, ...]
    written: dict[str, str]
    lines: frozenset[str]

    @classmethod
    def of(cls, project: Project, stage: str, reads: tuple[str, ...], work: Path, name: str = "") -> Area:
        """Run the stage once, undamaged."""
        copy = project.copy(work / "copy").path
        code, stderr = run_stage(copy, stage)
        assert code == 0, stderr
        area = cls(name or stage, stage, project, reads, hashes(copy, stage), spoken(stderr))
        shutil.rmtree(copy)
        return area

    def readable(self, copy: Path) -> list[Path]:
        """The files that the stage reads."""
        found = {file for pattern in self.reads for file in copy.glob(pattern)}
        return sorted(
            f for f in found if f.is_file() and not f.name.endswith(NOT_CONTENT) and f.name not in INPUT and f.stat().st_size
        )

    def case(self, draw: random.Random, work: Path) -> Case:
        """Damage one file and run the stage."""
        copy = self.project.copy(work / "copy").path
        try:
            file, damage = draw.choice(self.readable(copy)), draw.choice(DAMAGES)
            damage(file, draw)
            code, stderr = run_stage(copy, self.stage)
            if is_refused(code, stderr):
                verdict = REFUSED
            elif code != 0:
                verdict = TRACEBACK
            elif hashes(copy, self.stage) == self.written:
                verdict = HARMLESS
            else:
                verdict = SAID if spoken(stderr) - self.lines else SILENT
            return Case(self.name, f"{file.relative_to(copy).as_posix()}, {damage.__name__}", verdict, said(stderr, copy))
        finally:
            shutil.rmtree(copy)


def spoken(stderr: str) -> frozenset[str]:
    """The lines that say something: no progress."""
    return frozenset(line for line in stderr.splitlines() if "% " not in line)


def finished_project(path: Path, **changes: Any) -> Project:
    """A tiny project that has run to its end, made in a process of its own."""
    code, stderr = run_forked(lambda: make_project(path).set(trainer__n_checkpoints=0, **changes).run_all(), path.parent)
    assert code == 0, stderr
    return Project(path, read_mapping(path / "params.yaml"))


def half_trained(project: Project, path: Path) -> Project:
    """A copy in which the training has been stopped and has left resume points."""
    copy = project.copy(path)
    shutil.rmtree(path / "data" / "checkpoints")
    for log_step in (3, 6):
        code, stderr = run_stage(path, "train", before=lambda log_step=log_step: _stop_at(log_step))
        assert code == 130, stderr
    assert len(list(path.glob("data/checkpoints/*/step-*"))) > 1
    return copy


def _stop_at(log_step: int) -> None:
    """Send this process SIGTERM when the history's line of a log step is written."""
    from pipeline.training.history import History

    add = History.add

    def watched(history: History, *arguments: Any) -> None:
        add(history, *arguments)
        if history.file is not None and len(history.file.read_text().splitlines()) == log_step:
            os.kill(os.getpid(), signal.SIGTERM)

    History.add = watched  # type: ignore[method-assign]


def campaign(count: int, seed: int, work: Path) -> list[Case]:
    """So many damages in copies of projects in `work`, shared out evenly among the areas."""
    work.mkdir()
    project = finished_project(work / "project")
    areas = [Area.of(project, stage, READS[stage], work) for stage in STAGES if stage != "train"]
    areas.append(Area.of(half_trained(project, work / "half"), "train", READS["train"], work))
    tracked = finished_project(work / "tracked", tracking__enabled=True)
    shutil.rmtree(tracked.path / "data" / "checkpoints")
    areas += [Area.of(tracked, stage, TRACKED, work, f"{stage}, tracked") for stage in ("train", "evaluate")]
    progress = Progress("damaged files", count, unit="cases")
    found = []
    for number in range(count):
        found.append(areas[number % len(areas)].case(random.Random(f"{seed} {number}"), work))
        progress.update(1)
    progress.close()
    return found
