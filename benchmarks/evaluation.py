"""CPU seconds of evaluate and analyze, and of a whole `dvc repro`: this commit against another one, in alternating rounds.

    dvc repro && git worktree add ../before COMMIT
    python -m benchmarks.evaluation --before ../before             # both stages on what the run has left; minutes a round
    python -m benchmarks.evaluation --before ../before --whole     # first the whole default, each time in a fresh clone; both
                                                                   # stages then on what that of the other commit has left
    python -m benchmarks.evaluation --small                        # a tiny project, this commit alone

CPU seconds are user and system seconds of the stage's process, its start and imports among them: the clock tells little on a
machine that others use too. Both sides read the same inputs, and their figures must be equal: those of the evaluation and the
numbers of features.parquet up to rounding, the contexts of contexts.parquet exactly. Writes benchmarks/results/evaluation.md.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq

from benchmarks.quality import machine

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "evaluation.md"
OURS, BEFORE = "this commit", "before"
STAGES, TOGETHER, WHOLE = ("evaluate", "analyze"), "both stages", "dvc repro"
GOALS = {TOGETHER: 0.6, WHOLE: 0.75}
# What the two stages read, of a finished run; what they write is not among it.
READ = (
    *(f"data/{name}" for name in ("demo", "inputs", "inference", "tokens.zarr", "norms.json", "run.json")),
    "data/norm_statistics.safetensors",
    "metrics",
    "mlflow.db",
    "model",
)
TOLERANCE = 1e-5
SAME_CONTEXTS = ["feature", "band", "place", "context", "position", "tokens", "texts"]
SECONDS = dict[str, list[float]]  # {measured: CPU seconds of each round}


def prepared(finished: Path, folder: Path) -> Path:
    """A folder with what the stages read of a finished run."""
    for name in READ:
        source, place = finished / name, folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place)
        elif source.exists():
            shutil.copyfile(source, place)
    return folder


def seconds(command: Sequence[str], folder: Path, **variables: str) -> float:
    """CPU seconds of a command and its children, run in a folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {key: value for key, value in os.environ.items() if key != "DVC_ROOT"} | variables
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def stages(checkout: Path, folder: Path, params: Path) -> dict[str, float]:
    """CPU seconds of each stage of a checkout, in a prepared folder."""
    found = {}
    for stage in STAGES:
        command = [sys.executable, "-m", f"stages.{stage}", "--params", str(params)]
        found[stage] = seconds(command, folder, PYTHONPATH=str(checkout))
    return found | {TOGETHER: sum(found.values())}


def whole(checkout: Path, place: Path) -> float:
    """CPU seconds of `dvc repro` in a fresh clone, made at `place`, of what a checkout has committed."""
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run(["git", "clone", "-q", str(checkout), str(place)], check=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return seconds([sys.executable, "-m", "dvc", "repro"], place, PATH=path, PYTHONPATH="")


def check_equal(one: Path, other: Path) -> None:
    """Refuse figures that are not those of the other folder.

    Raises:
        ClickException: the first that differs.
    """
    figures, wanted = (json.loads((place / "metrics" / "evaluation.json").read_text()) for place in (one, other))
    if figures.keys() != wanted.keys():
        raise click.ClickException(f"metrics/evaluation.json: other names: {sorted(figures.keys() ^ wanted.keys())}")
    for name, value in figures.items():
        # A difference of cross entropies is as near as these are.
        size = max(abs(figures.get("ce_original", 0.0)), 1e-4) if "delta_ce" in name else 1e-4
        if not math.isclose(value, wanted[name], rel_tol=TOLERANCE, abs_tol=TOLERANCE * size):
            raise click.ClickException(f"metrics/evaluation.json: {name} is {value}, before {wanted[name]}")
    features, due = (pq.read_table(place / "data" / "features" / "features.parquet") for place in (one, other))
    for name in ("active_tokens", "max_activation", "mean_activation", "energy", "decoder_norm", "logit_kurtosis"):
        values, right = (table[name].to_numpy() for table in (features, due))
        if not np.allclose(values.astype(float), right.astype(float), rtol=TOLERANCE, atol=0, equal_nan=True):
            raise click.ClickException(f"features.parquet: {name} differs")
    shown, right = (
        pq.read_table(place / "data" / "features" / "contexts.parquet", columns=SAME_CONTEXTS) for place in (one, other)
    )
    if not shown.equals(right):
        raise click.ClickException("contexts.parquet: other contexts")


def measure(sides: Mapping[str, Path], finished: Path, params: Mapping[str, Path], rounds: int) -> dict[str, SECONDS]:
    """{side: CPU seconds of each stage and of both}, the sides in turn; their figures are compared.

    Args:
        sides: {name: checkout}.
        finished: a finished run.
        params: {name: parameter file}; one of two versions may have keys that the other does not know.
        rounds: of all sides.
    """
    found: dict[str, SECONDS] = {side: {} for side in sides}
    with tempfile.TemporaryDirectory() as place:
        folders = {side: prepared(finished, Path(place) / str(i)) for i, side in enumerate(sides)}
        for number in range(rounds):
            for side, checkout in sides.items():
                for name, value in stages(checkout, folders[side], params[side]).items():
                    found[side].setdefault(name, []).append(value)
                    click.echo(f"round {number + 1}: {side}, {name}: {value:.1f} CPU s", err=True)
        for one, other in itertools.pairwise([*folders.values(), finished] if len(sides) == 1 else folders.values()):
            check_equal(one, other)
    return found


def ratio(found: Mapping[str, SECONDS], name: str) -> float:
    """This commit's CPU seconds over those before, median of the rounds."""
    return statistics.median(a / b for a, b in zip(found[OURS][name], found[BEFORE][name], strict=True))


def table(found: Mapping[str, SECONDS]) -> list[str]:
    """Lines of markdown."""
    lines = ["| measured | before | this commit | ratio | goal |", "|---|---:|---:|---:|---|"]
    for name in found[OURS]:
        cells = []
        for side in (BEFORE, OURS):
            values = found[side][name]
            cells.append(f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        measured, goal = ratio(found, name), GOALS.get(name)
        verdict = "" if goal is None else f"{goal}: {'met' if measured <= goal else 'missed'}"
        lines.append(f"| {name} | {' | '.join(cells)} | {measured:.2f} | {verdict} |")
    return lines


def report(lines: Iterable[str], command: str, before: str, rounds: str) -> str:
    """The text of the results file."""
    return "\n".join(
        [
            "# Evaluation, analysis and the whole default",
            "",
            f"`{command}` on {machine()}; {rounds} in turn.",
            "CPU seconds (user and system), medians (least to greatest); the ratio is the median of those of the rounds.",
            f"Before is {before}. The figures of both commits were compared and are equal up to rounding.",
            "",
            *lines,
            "",
        ]
    )


def _commit(checkout: Path) -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@click.command()
@click.option("--before", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A checkout of another commit.")
@click.option("--finished", type=click.Path(exists=True, file_okay=False, path_type=Path), default=ROOT, help="A finished run.")
@click.option("--rounds", default=3, show_default=True, help="Of the two stages.")
@click.option("--whole", "repro", is_flag=True, help="Run the whole default too.")
@click.option("--whole-rounds", default=1, show_default=True)
@click.option("--small", is_flag=True, help="A tiny project, this commit alone; nothing is written.")
def main(before: Path | None, finished: Path, rounds: int, repro: bool, whole_rounds: int, small: bool) -> None:
    """Measure and write the table."""
    if small:
        from tests.project import make_project

        with tempfile.TemporaryDirectory() as folder:
            project = make_project(Path(folder) / "project").run_all()
            measure({OURS: ROOT}, project.path, {OURS: project.path / "params.yaml"}, 1)
        return
    if before is None:
        raise click.UsageError("--before CHECKOUT: name a checkout of the commit to compare with")
    sides = {BEFORE: before.resolve(), OURS: ROOT}
    params = {side: checkout / "params.yaml" for side, checkout in sides.items()}
    repros: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(whole_rounds if repro else 0):
            for side, checkout in sides.items():
                repros[side].append(value := whole(checkout, Path(folder) / side))
                click.echo(f"round {number + 1}: {side}, {WHOLE}: {value:.1f} CPU s", err=True)
        # An older version cannot read what a newer one has written.
        found = measure(sides, Path(folder) / BEFORE if repro else finished, params, rounds)
    for side in sides if repro else ():
        found[side][WHOLE] = repros[side]
    command = "python -m benchmarks.evaluation --before CHECKOUT" + " --whole" * repro
    counted = f"{rounds} rounds" + f" (of {WHOLE} {whole_rounds})" * repro
    text = report(table(found), command, _commit(before), counted)
    click.echo(text)
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
