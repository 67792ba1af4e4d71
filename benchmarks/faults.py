"""Damage every file that a stage reads, run the stage, and see whether it says so.

On a tiny project that has run to its end, one file is damaged in one way, the stage is run again in a process of its own, and
what it wrote is compared with what the undamaged project writes:

    refused     one line and exit code 2
    harmless    the outputs are the same, byte for byte
    SILENT      exit code 0, and an output is another one
    TRACEBACK   anything else

    python -m benchmarks.faults                        # 320 cases, benchmarks/results/faults.md
    python -m benchmarks.faults --cases 1000 --seed 7

Checkpoints are damaged before a training that goes on from them. Exit status 1: a silent change or a traceback.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.quality import machine
from pipeline.progress import Progress
from tests.project import STAGES, Project, make_project

RESULTS = Path("benchmarks/results/faults.md")
VERDICTS = ("refused", "harmless", "SILENT", "TRACEBACK")
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


@dataclass(frozen=True)
class Case:
    """One damage and what became of it."""

    stage: str
    file: str
    damage: str
    verdict: str
    said: str


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


def run_stage(project: Path, stage: str) -> tuple[int, str]:
    """Exit code and stderr of a stage in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "DVC_ROOT": str(project)}
    command = [sys.executable, "-m", f"stages.{stage}"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=600)
    return done.returncode, done.stderr


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


def judge(project: Project, stage: str, wanted: dict[str, str], draw: random.Random, work: Path) -> Case:
    """Damage one file and run the stage."""
    copy = prepared(project, stage, work / "copy")
    try:
        file, damage = draw.choice(readable(copy, stage)), draw.choice(DAMAGES)
        damage(file, draw)
        code, stderr = run_stage(copy, stage)
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        same = code == 0 and hashes(copy, stage) == wanted
        refused = code == 2 and len(errors) == 1 and "Traceback" not in stderr
        verdict = "refused" if refused else "harmless" if same else "SILENT" if code == 0 else "TRACEBACK"
        said = errors[0] if errors else (stderr.strip().splitlines() or [""])[-1]
        return Case(stage, file.relative_to(copy).as_posix(), damage.__name__, verdict, said.replace(str(copy), ""))
    finally:
        shutil.rmtree(copy)


def report(cases: list[Case], command: str) -> str:
    """The table of stages and verdicts, and every silent change and traceback."""
    lines = [
        "# Damaged files",
        "",
        f"`{command}` on {machine()}.",
        "Each case damages one file that a stage reads (a bit, a digit, the end, all of it, a block of zeros, another",
        "file in its place, something appended) and runs the stage.",
        "",
        f"| stage | {' | '.join(VERDICTS)} |",
        f"|---|{'---|' * len(VERDICTS)}",
    ]
    for stage in STAGES:
        counts = Counter(case.verdict for case in cases if case.stage == stage)
        lines.append(f"| {stage} | {' | '.join(str(counts[verdict]) for verdict in VERDICTS)} |")
    counts = Counter(case.verdict for case in cases)
    lines += [f"| all | {' | '.join(str(counts[verdict]) for verdict in VERDICTS)} |", ""]
    bad = [case for case in cases if case.verdict in VERDICTS[2:]]
    lines += [f"- {case.verdict} {case.stage}, {case.file}, {case.damage}: `{case.said[:200]}`" for case in bad]
    return "\n".join(lines).rstrip() + "\n"


@click.command()
@click.option("--cases", type=click.IntRange(1), default=320, help="Damages, shared out evenly among the stages.")
@click.option("--seed", type=int, default=0, help="Of the draw of files and damages.")
@click.option("--stage", "chosen", multiple=True, type=click.Choice(STAGES), help="Only this stage.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, help="Where the table goes.")
def main(cases: int, seed: int, chosen: tuple[str, ...], out: Path) -> None:
    """Damage files, run stages, count what was said."""
    stages, found = chosen or STAGES, []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        project = make_project(work / "project").set(trainer__n_checkpoints=0).run_all()
        wanted = {}
        for stage in stages:
            copy = prepared(project, stage, work / "copy")
            code, stderr = run_stage(copy, stage)
            assert code == 0, stderr
            wanted[stage] = hashes(copy, stage)
            shutil.rmtree(copy)
        progress = Progress("faults", cases, unit="cases")
        for number in range(cases):
            stage = stages[number % len(stages)]
            found.append(judge(project, stage, wanted[stage], random.Random(f"{seed} {number}"), work))
            progress.update(1)
        progress.close()
    text = report(found, f"python -m benchmarks.faults --cases {cases} --seed {seed}")
    out.write_text(text)
    click.echo(text)
    sys.exit(any(case.verdict in VERDICTS[2:] for case in found))


if __name__ == "__main__":
    main()
