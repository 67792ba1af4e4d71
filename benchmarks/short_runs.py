"""Short training runs: more steps never make a dictionary worse, and at no length is it behind other packages' trainers.

fit() with nothing stated but width, k and length, TopK, over 5 to 1,000 steps, on two planted sets (planted.py) and on the
embedded default's residual stream, at three widths each; beside it the TopK trainers of sparsify, SAELens and
dictionary_learning with their own defaults (peer_trainers.py says what these are), each in a Python of its own. All get the
same rows: a run of n steps the first n batches of a set (or all 200 batches, as often as needed). One seed, one thread.

    dvc repro tokenize
    python -m benchmarks.short_runs --peer sparsify=/envs/sparsify/bin/python --peer saelens=/envs/saelens/bin/python \\
        --peer dictionary_learning=/envs/dl/bin/python      # everything; writes benchmarks/results/short_runs.md
    python -m benchmarks.short_runs                          # no peers: the first goal alone
    python -m benchmarks.short_runs --runs runs.jsonl        # keeps every run there; started again, goes on; peers' runs that
                                                             # are there are compared with

Goals, exit status 1 if one is missed: FVU of the held-out rows is at no number of steps more than 1 % above that of any
smaller number; and at most 5 % above the best of the peers with the same number.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.planted import MAIN, SECOND, SETS
from benchmarks.quality import machine, sets_in_words
from benchmarks.sites import L0, LAYER, SITES, activations
from pipeline.corpus.tokens import open_tokens
from pipeline.evaluation.in_memory import evaluate_reconstruction
from pipeline.lm.loading import load_language_model
from pipeline.training.fit import fit

RESULTS = Path("benchmarks/results/short_runs.md")
OURS, PEERS = "fit()", ("sparsify", "saelens", "dictionary_learning")
RESIDUAL = "residual"
STEPS = (5, 10, 20, 50, 100, 300, 1000)
BATCH, TRAINING_BATCHES, HELD_OUT_ROWS = 1024, 200, 20_000
MOST_RISE, MOST_BEHIND = 0.01, 0.05


class Setting(NamedTuple):
    """k and the dictionaries' widths on one set of rows."""

    k: int
    features: tuple[int, ...]


# Widths of the activations: 256, 192, 128.
SETTINGS = {
    MAIN.name: Setting(MAIN.l0, (512, 1024, MAIN.n_directions)),
    SECOND.name: Setting(SECOND.l0, (384, SECOND.n_directions, 3072)),
    RESIDUAL: Setting(L0, (256, 1024, 2048)),
}


class Run(NamedTuple):
    """One run: rows of which set, features, steps, and whose trainer."""

    rows: str
    features: int
    steps: int
    trainer: str


class Found(NamedTuple):
    """What a run gave: FVU of the held-out rows, seconds of the training, and the version of a peer's package."""

    fvu: float
    seconds: float
    version: str = ""


class Rows(NamedTuple):
    """float32 [N, D] each."""

    training: Tensor
    held_out: Tensor


def read_rows(name: str, tokens: Path) -> Rows:
    """The rows of a set; those of the residual stream in a random order, held-out ones of other documents."""
    if name in SETS:
        data = SETS[name].draw(0)
        return Rows(data.rows(TRAINING_BATCHES * BATCH, "training"), data.rows(HELD_OUT_ROWS, "held out"))
    store, model = open_tokens(tokens), load_language_model("demo")
    hook = f"blocks.{LAYER}.{SITES['residual stream']}"
    training, held_out = (activations(model, store, split, hook).activations for split in (store.train, store.eval))
    return Rows(training[: TRAINING_BATCHES * BATCH].clone(), held_out[:HELD_OUT_ROWS].clone())


def own_runs(rows: Rows, runs: Sequence[Run]) -> Iterator[tuple[Run, Found]]:
    """fit() on as many rows as the run's steps take."""
    for run in runs:
        began = time.monotonic()
        result = fit(
            rows.training[: run.steps * BATCH],
            dictionary={"act_fn": "topk", "d_sae": run.features, "top_k": SETTINGS[run.rows].k},
            trainer={"total_training_tokens": run.steps * BATCH},
            batch_size=BATCH,
            seed=0,
            device="cpu",
        )
        seconds = time.monotonic() - began
        yield run, Found(evaluate_reconstruction(result.inference, rows.held_out)["fvu"], seconds)


def peer_runs(rows: Rows, runs: Sequence[Run], python: str) -> Iterator[tuple[Run, Found]]:
    """Runs of one peer on one set, in its Python.

    Raises:
        click.ClickException: it cannot be started, or fails.
    """
    name, _, _, peer = runs[0]
    script = Path(__file__).with_name("peer_trainers.py")
    jobs = {"batch": BATCH, "k": SETTINGS[name].k, "runs": [[run.features, run.steps] for run in runs]}
    with tempfile.TemporaryDirectory() as folder:
        for part, array in rows._asdict().items():
            np.save(Path(folder) / f"{part}.npy", array.numpy())
        log = Path(folder) / "log.txt"
        with log.open("w") as errors:
            command = [python, str(script), peer, folder, json.dumps(jobs)]
            try:
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            except OSError as error:
                raise click.ClickException(f"{peer}: {python} cannot be started: {error}; give its Python") from error
            with process:
                assert process.stdout is not None
                for line in process.stdout:
                    found = json.loads(line)
                    run = Run(name, found.pop("features"), found.pop("steps"), peer)
                    yield run, Found(**found)
        if process.returncode:
            raise click.ClickException(f"{peer} on {name} ended with status {process.returncode}:\n{log.read_text()[-2000:]}")


def kept_runs(file: Path | None) -> dict[Run, Found]:
    """The runs of a file that keep() wrote; none if there is no such file."""
    if file is None or not file.exists():
        return {}
    pairs = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return {Run(**run): Found(**found) for run, found in pairs}


def keep(file: Path | None, run: Run, found: Found) -> None:
    """Append a run to a file."""
    if file is not None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([run._asdict(), found._asdict()]) + "\n")


def missed(results: Mapping[Run, Found]) -> list[str]:
    """A line for each goal that one of our runs misses; one whose FVU is not finite misses all, a peer's counts for none."""
    fvu = {run: found.fvu for run, found in results.items() if math.isfinite(found.fvu)}
    lines = []
    for run in sorted(run for run in results if run.trainer == OURS):
        what = f"{run.rows}, {run.features:,} features, {run.steps:,} steps: FVU {results[run].fvu:.4f}"
        if run not in fvu:
            lines.append(f"{what} is not finite")
            continue
        shorter = [(fvu[of], f"{n:,} steps") for n in STEPS if n < run.steps and (of := run._replace(steps=n)) in fvu]
        theirs = [(fvu[of], peer) for peer in PEERS if (of := run._replace(trainer=peer)) in fvu]
        for others, most in ((shorter, MOST_RISE), (theirs, MOST_BEHIND)):
            if others and fvu[run] > (1 + most) * min(others)[0]:
                least, of_what = min(others)
                lines.append(f"{what} is {fvu[run] / least - 1:.1%} above that of {of_what}, {least:.4f}; wanted <= {most:.0%}")
    return lines


def table(results: Mapping[Run, Found]) -> list[str]:
    """Markdown: FVU by set, width and trainer (lines) and steps (columns); the seconds are those of the longest run."""
    lengths = sorted({run.steps for run in results})
    lines = [f"| set | features | FVU after steps: | {' | '.join(f'{n:,}' for n in lengths)} | seconds |"]
    lines.append("|---|---:|---|" + "---:|" * (len(lengths) + 1))
    order = [*SETTINGS, OURS, *PEERS]
    places = {run._replace(steps=0) for run in results}
    for place in sorted(places, key=lambda run: (order.index(run.rows), run.features, order.index(run.trainer))):
        runs = [place._replace(steps=n) for n in lengths]
        cells = [f"{results[run].fvu:.4f}" if run in results else "" for run in runs]
        longest = max((run for run in runs if run in results), key=lambda run: run.steps)
        start = f"| {place.rows} | {place.features:,} | {place.trainer} |"
        lines.append(f"{start} {' | '.join(cells)} | {results[longest].seconds:.0f} |")
    return lines


def report(results: Mapping[Run, Found], command: str) -> str:
    """The text of the results file."""
    faults = missed(results)
    names = [name for name in SETTINGS if name in {run.rows for run in results}]
    words = sets_in_words(name for name in names if name in SETS)
    if RESIDUAL in names:
        words.append(f"- {RESIDUAL}: residual stream of the embedded default's layer {LAYER}, width 128; L0 {L0}")
    versions = sorted({found.version for found in results.values()} - {""})
    return "\n".join(
        [
            "# Short training runs beside other packages' trainers",
            "",
            f"`{command}` on {machine()}, one thread.",
            f"TopK, batch {BATCH:,}, the same rows for all (at most {TRAINING_BATCHES * BATCH:,}); FVU on {HELD_OUT_ROWS:,} "
            f"held-out rows; seconds of the longest run. Peers with their own defaults, as benchmarks/peer_trainers.py states "
            f"them: {', '.join(versions) or 'none'}.",
            f"Goals: FVU at most {MOST_RISE:.0%} above that of any shorter run, and at most {MOST_BEHIND:.0%} above the best "
            f"peer's.",
            "",
            *words,
            "",
            *table(results),
            "",
            *(["Goals missed:", "", *(f"- {line}" for line in faults)] if faults else ["All goals are met."]),
            "",
        ]
    )


def _pythons(given: Sequence[str]) -> dict[str, str]:
    """--peer options: name to Python."""
    pairs = [text.partition("=") for text in given]
    for text, (name, _, python) in zip(given, pairs, strict=True):
        if name not in PEERS or not python:
            raise click.UsageError(f"--peer {text}: wanted NAME=PYTHON with a name of {', '.join(PEERS)}")
    return {name: python for name, _, python in pairs}


def _asked(sets: Sequence[str], steps: Sequence[int], widths: Sequence[int], trainers: Sequence[str]) -> list[Run]:
    """The runs of the grid that the filters leave, in the order in which they are made."""
    asked = [
        Run(name, features, n, trainer)
        for name, setting in SETTINGS.items()
        for trainer in trainers
        for features in setting.features
        for n in STEPS
        if (not sets or name in sets) and (not steps or n in steps) and (not widths or features in widths)
    ]
    if not asked:
        raise click.UsageError(f"nothing to run: steps are {STEPS}, widths {SETTINGS}")
    return asked


@click.command()
@click.option("--peer", "peers", multiple=True, metavar="NAME=PYTHON", help="A Python that has the peer's package; repeatable.")
@click.option("--only", type=click.Choice(("ours", "peers")), help="Whose runs to make; all without it.")
@click.option("--sets", multiple=True, type=click.Choice(tuple(SETTINGS)), help="Sets of rows; all without it.")
@click.option("--steps", multiple=True, type=int, help="Lengths; all without it.")
@click.option("--widths", multiple=True, type=int, help="Numbers of features; all without it.")
@click.option("--tokens", type=click.Path(path_type=Path), default="data/tokens.zarr", show_default=True, help="Token store.")
@click.option("--runs", type=click.Path(path_type=Path), help="File of finished runs; what it has is not run.")
@click.option("--output", type=click.Path(path_type=Path), help=f"Where to write; {RESULTS} if everything is there.")
def main(
    peers: tuple[str, ...],
    only: str | None,
    sets: tuple[str, ...],
    steps: tuple[int, ...],
    widths: tuple[int, ...],
    tokens: Path,
    runs: Path | None,
    output: Path | None,
) -> None:
    """Train, measure, compare with the goals."""
    torch.set_num_threads(1)
    pythons = _pythons(peers)
    trainers = [*(() if only == "peers" else (OURS,)), *(() if only == "ours" else pythons)]
    results = kept_runs(runs)
    left = [run for run in _asked(sets, steps, widths, trainers) if run not in results]
    for name in dict.fromkeys(run.rows for run in left):
        rows = read_rows(name, tokens)
        for trainer in trainers:
            of = [run for run in left if (run.rows, run.trainer) == (name, trainer)]
            if of:
                for run, found in own_runs(rows, of) if trainer == OURS else peer_runs(rows, of, pythons[trainer]):
                    click.echo(f"{run.rows}, {run.features:,} features, {run.steps:,} steps, {trainer}: {found.fvu:.4f}")
                    keep(runs, run, found)
                    results[run] = found
    text = report(results, " ".join(["python -m benchmarks.short_runs", *sys.argv[1:]]))
    click.echo("\n" + text)
    if output is None and set(_asked((), (), (), (OURS, *PEERS))) <= set(results):
        output = RESULTS
    if output is not None:
        output.write_text(text, encoding="utf-8")
    if missed(results):
        sys.exit(1)


if __name__ == "__main__":
    main()
