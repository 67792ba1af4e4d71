"""Damage every file that a stage reads, run the stage, and see whether it says so.

On a tiny project that has run to its end, one file is damaged in one way, the stage is run again in a process of its own, and
what it wrote is compared with what the undamaged project writes: refused, harmless (the outputs are the same, byte for byte),
said (an output is another one, and a line that the undamaged run does not print says what was found), SILENT (no such line) or
TRACEBACK (anything else). Checkpoints are damaged before a training that goes on from them.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.cases import HARMLESS, REFUSED, SAID, SILENT, TRACEBACK, Case, is_refused, said
from benchmarks.faults.forked import run_forked, run_stage
from pipeline.params.reading import read_mapping
from pipeline.progress import Progress
from tests.project import STAGES, Project, make_project

# Stage -> globs of what it reads.
READS = {
    "tokenize_corpus": ("text.jsonl", "model/*"),
    "generate_activations": ("data/tokens.zarr/**/*", "model/*", "data/store/**/*"),
    "compute_norm": ("data/activations.json", "data/store/**/*"),
    "initialize": ("data/activations.json", "data/norms.json", "data/store/**/*"),
    "train": ("data/activations.json", "data/norms.json", "data/initial/main/*", "data/store/**/*", "data/checkpoints/**/*"),
    "fold_norm": ("data/activations.json", "data/norms.json", "data/trained/main/*", "data/store/**/*"),
    "evaluate": (
        "data/inference/main/*", "data/norms.json", "data/norm_statistics.safetensors", "data/tokens.zarr/**/*", "model/*",
    ),
    "analyze": ("data/inference/main/*", "data/norms.json", "data/tokens.zarr/**/*", "model/*"),
}  # fmt: skip
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


def readable(project: Path, stage: str) -> list[Path]:
    """The files that the stage reads."""
    found = {file for pattern in READS[stage] for file in project.glob(pattern)}
    return sorted(
        f for f in found if f.is_file() and not f.name.endswith(NOT_CONTENT) and f.name not in INPUT and f.stat().st_size
    )


def prepared(project: Project, stage: str, place: Path) -> Path:
    """A copy of the project in which the stage has work to do: a training that goes on from half of it."""
    copy = project.copy(place).path
    if stage == "train":
        for finished in (copy / "data/checkpoints").glob("*/finished"):
            shutil.rmtree(finished)
    return copy


@dataclass(frozen=True)
class Undamaged:
    """What a stage does on the undamaged project: {output: sha256}, and the lines that it says."""

    written: dict[str, str]
    lines: frozenset[str]


def spoken(stderr: str) -> frozenset[str]:
    """The lines that say something: no progress."""
    return frozenset(line for line in stderr.splitlines() if "% " not in line)


def judge(project: Project, stage: str, wanted: Undamaged, draw: random.Random, work: Path) -> Case:
    """Damage one file and run the stage."""
    copy = prepared(project, stage, work / "copy")
    try:
        file, damage = draw.choice(readable(copy, stage)), draw.choice(DAMAGES)
        damage(file, draw)
        code, stderr = run_stage(copy, stage)
        if is_refused(code, stderr):
            verdict = REFUSED
        elif code != 0:
            verdict = TRACEBACK
        elif hashes(copy, stage) == wanted.written:
            verdict = HARMLESS
        else:
            verdict = SAID if spoken(stderr) - wanted.lines else SILENT
        return Case(stage, f"{file.relative_to(copy).as_posix()}, {damage.__name__}", verdict, said(stderr, copy))
    finally:
        shutil.rmtree(copy)


def finished_project(path: Path) -> Project:
    """A tiny project that has run to its end, made in a process of its own."""
    code, stderr = run_forked(lambda: make_project(path).set(trainer__n_checkpoints=0).run_all(), path.parent)
    assert code == 0, stderr
    return Project(path, read_mapping(path / "params.yaml"))


def campaign(count: int, seed: int, work: Path) -> list[Case]:
    """So many damages in copies of a project in `work`, shared out evenly among the stages."""
    work.mkdir()
    project, wanted, found = finished_project(work / "project"), {}, []
    for stage in STAGES:
        copy = prepared(project, stage, work / "copy")
        code, stderr = run_stage(copy, stage)
        assert code == 0, stderr
        wanted[stage] = Undamaged(hashes(copy, stage), spoken(stderr))
        shutil.rmtree(copy)
    progress = Progress("damaged files", count, unit="cases")
    for number in range(count):
        stage = STAGES[number % len(STAGES)]
        found.append(judge(project, stage, wanted[stage], random.Random(f"{seed} {number}"), work))
        progress.update(1)
    progress.close()
    return found
