"""Tokens a second of a training step on the CPU: this commit, another one, and other packages, in alternating rounds.

    git worktree add ../before COMMIT
    python -m benchmarks.step --before ../before --peer sparsify=PYTHON --peer dictionary_learning=PYTHON
    python -m benchmarks.step --small      # seconds; what the tests run

All train on the same rows. A step is the time between two batches, by the clock, the median of a run; of our own runs also in
CPU seconds, which tell more on a machine that others use too. Peers run with their own defaults, as peer_trainers.py states
them (benchmarks.peers installs them). Beside it the parts that no step of this kind can do without, each timed by itself in
the same run: encoder product, selection, decoding, the gradient of the chosen values, those of both weights, and the
optimiser. Writes benchmarks/results/step.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch

from benchmarks.planted import PlantedSet
from benchmarks.quality import machine
from pipeline.kernels.cpu import CpuEntries
from pipeline.kernels.entries import Places
from pipeline.kernels.largest import largest_places
from pipeline.seeding import generator
from pipeline.training.optimizers import Adam

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "step.md"
OURS, BEFORE = "this commit", "before"
HELD_OUT = 8192


class Case(NamedTuple):
    """A shape and gate: width, features, k, tokens of a batch, steps."""

    name: str
    act_fn: str
    d: int
    f: int
    k: int
    batch: int
    steps: int


CASES = (
    Case("S0", "topk", 256, 2048, 32, 2048, 60),
    Case("S1", "topk", 768, 6144, 64, 4096, 16),
    Case("S0", "batchtopk", 256, 2048, 32, 2048, 60),
    Case("S0", "jumprelu", 256, 2048, 32, 2048, 60),
)
SMALL = (Case("small", "topk", 16, 64, 4, 64, 60),)
PEER_NAMES = ("sparsify", "saelens", "dictionary_learning")


class Timed(NamedTuple):
    """Seconds of a step by the clock, CPU seconds (0: not known), and FVU after the run."""

    step: float
    fvu: float
    cpu: float = 0.0


def write_rows(case: Case, folder: Path) -> None:
    """training.npy and held_out.npy: planted mixtures of as many directions as there are features."""
    planted = PlantedSet(case.name, case.d, case.f, case.k / 2, 0.5, 2.0, 0.3, 4.0, case.k).draw(0)
    for name, n in (("training", (case.steps + 2) * case.batch), ("held_out", HELD_OUT)):
        np.save(folder / f"{name}.npy", planted.rows(n, name.replace("_", " ")).numpy())


def run_own(case: Case, checkout: Path, folder: Path, threads: int) -> Timed:
    """fit() of a checkout."""
    job = {"act_fn": case.act_fn, "features": case.f, "k": case.k, "batch": case.batch, "steps": case.steps, "threads": threads}
    command = [sys.executable, str(Path(__file__).with_name("step_run.py")), str(folder), json.dumps(job)]
    return _timed(command, {**os.environ, "PYTHONPATH": str(checkout)})


def run_peer(case: Case, peer: str, python: str, folder: Path, threads: int) -> Timed:
    """A peer's own trainer, in its Python."""
    job = {"batch": case.batch, "k": case.k, "runs": [[case.f, case.steps]], "threads": threads}
    command = [python, str(Path(__file__).with_name("peer_trainers.py")), peer, str(folder), json.dumps(job)]
    return _timed(command, os.environ)


def _timed(command: list[str], environment: Mapping[str, str]) -> Timed:
    done = subprocess.run(command, capture_output=True, text=True, env=dict(environment), cwd=tempfile.gettempdir())
    if done.returncode:
        raise click.ClickException(f"{' '.join(command[:3])} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Timed(found["step"], found["fvu"], found.get("cpu", 0.0))


def parts(case: Case, threads: int, rounds: int = 7) -> dict[str, float]:
    """Milliseconds of each part that a TopK step cannot do without, medians."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        g = generator(0, "parts")
        x, W_FD = torch.randn(case.batch, case.d, generator=g), torch.randn(case.f, case.d, generator=g)
        z = x @ W_FD.T
        flat = largest_places(z, case.k)
        entries = CpuEntries()
        places = Places(flat // case.f, flat % case.f, case.batch, case.f, entries)
        values = z.reshape(-1)[flat]
        weight = torch.nn.Parameter(W_FD.clone())
        weight.grad = torch.randn(W_FD.shape, generator=g)
        adam = Adam({"W": weight})
        kernels: dict[str, Callable[[], object]] = {
            "encoder product": lambda: x @ W_FD.T,
            "selection": lambda: largest_places(z, case.k),
            "decoding": lambda: entries.row_sums(values, places, W_FD),
            "gradient of the values": lambda: entries.products(x, W_FD, places),
            "order by feature": lambda: entries.ordered(places),
            "gradient of W_D": lambda: entries.column_sums(values, places, x),
            "gradient of W_E": lambda: entries.column_sums(values, places, x),
            "Adam of both": lambda: (adam.step(1e-4), adam.step(1e-4)),
        }
        return {name: _median_ms(kernel, rounds) for name, kernel in kernels.items()}
    finally:
        torch.set_num_threads(before)


def _median_ms(kernel: Callable[[], object], rounds: int) -> float:
    kernel()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        kernel()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e3


def measure(
    case: Case, before: Path | None, peers: Mapping[str, str], rounds: int, threads: int
) -> tuple[dict[str, list[Timed]], list[dict[str, float]]]:
    """Every trainer of a case, `rounds` times in turn, and the parts beside each round."""
    found: dict[str, list[Timed]] = {}
    beside = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_rows(case, place)
        for number in range(rounds):
            runs: dict[str, Callable[[], Timed]] = {OURS: lambda: run_own(case, ROOT, place, threads)}
            if before is not None:
                runs[BEFORE] = lambda: run_own(case, before, place, threads)
            if case.act_fn == "topk":
                beside.append(parts(case, threads))
                for peer, python in peers.items():
                    runs[peer] = lambda peer=peer, python=python: run_peer(case, peer, python, place, threads)  # type: ignore[misc]
            for name, run in runs.items():
                found.setdefault(name, []).append(timed := run())
                speed = case.batch / timed.step
                click.echo(
                    f"{case.name} {case.act_fn} round {number + 1}: {name} {speed:,.0f} tokens/s, FVU {timed.fvu:.4f}", err=True
                )
    return found, beside


def table(case: Case, found: Mapping[str, list[Timed]], beside: list[dict[str, float]]) -> list[str]:
    """Lines of markdown of one case."""
    lines = []
    own = statistics.median(timed.step for timed in found[OURS])
    for name, timed in found.items():
        steps = [t.step for t in timed]
        pairs = list(zip(timed, found[OURS], strict=True))
        ratio = statistics.median(other.step / mine.step for other, mine in pairs)
        cpu = [other.cpu / mine.cpu for other, mine in pairs if other.cpu]
        spread = f"{case.batch / max(steps):,.0f} to {case.batch / min(steps):,.0f}"
        lines.append(
            f"| {case.name}, {case.act_fn} | {name} | {case.batch / statistics.median(steps):,.0f} ({spread}) | {ratio:.2f} "
            f"| {f'{statistics.median(cpu):.2f}' if cpu else ''} | {statistics.median(t.fvu for t in timed):.4f} |"
        )
    if beside:
        medians = {name: statistics.median(part[name] for part in beside) for name in beside[0]}
        total = sum(medians.values())
        words = ", ".join(f"{name} {ms:.1f}" for name, ms in medians.items())
        speed = f"{case.batch / total * 1e3:,.0f} | {total / own / 1e3:.2f} of the step"
        lines.append(f"| {case.name}, {case.act_fn} | its parts alone | {speed} | | {words} ms |")
    return lines


def report(lines: Iterable[str], command: str, rounds: int, threads: int) -> str:
    """The text of the results file."""
    shapes = {case.name: f"{case.name}: {case.d} x {case.f:,}, k {case.k}, batch {case.batch:,}" for case in CASES}
    return "\n".join(
        [
            "# A training step on the CPU",
            "",
            f"`{command}` on {machine()}, {threads} threads; {rounds} rounds in turn, medians (least to greatest).",
            f"{'; '.join(shapes.values())}. Ratio: this commit's speed over theirs, median of the rounds. FVU on {HELD_OUT:,} "
            "held-out rows after the same tokens.",
            "",
            "| case | trainer | tokens/s | ratio | in CPU seconds | FVU |",
            "|---|---|---:|---:|---:|---|",
            *lines,
            "",
        ]
    )


@click.command()
@click.option(
    "--before",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    help="A checkout of another commit.",
)
@click.option("--peer", "given", multiple=True, help=f"NAME=PYTHON, NAME of {', '.join(PEER_NAMES)}.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--case", "wanted", multiple=True, help="As 'S0 topk'; all.")
@click.option("--small", is_flag=True, help="A case of seconds; nothing is written.")
def main(before: Path | None, given: tuple[str, ...], rounds: int, threads: int, wanted: tuple[str, ...], small: bool) -> None:
    """Time the cases and write the table."""
    pairs = [text.partition("=") for text in given]
    for name, _, python in pairs:
        if name not in PEER_NAMES or not python:
            raise click.UsageError(f"--peer {name}: wanted NAME=PYTHON with a name of {', '.join(PEER_NAMES)}")
    peers = {name: python for name, _, python in pairs}
    lines: list[str] = []
    for case in SMALL if small else CASES:
        if not wanted or f"{case.name} {case.act_fn}" in wanted:
            lines += table(case, *measure(case, before, peers, rounds, threads))
    command = "python -m benchmarks.step" + " --before CHECKOUT" * (before is not None)
    text = report(lines, command + "".join(f" --peer {name}=PYTHON" for name in peers), rounds, threads)
    click.echo(text)
    if not small and not wanted:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
