"""What massive rows do to a dictionary: fit() with the rule that leaves them out, without it, and on the ordinary rows alone.

    python -m benchmarks.massive                              # everything; writes benchmarks/results/massive.md
    python -m benchmarks.massive --rows noise --gates topk --steps 256 --batches 256
    python -m benchmarks.massive --runs runs.jsonl            # keeps every run there; started again, goes on after the last
    python -m benchmarks.massive --gates batchtopk --lengths 1 --lengths 10     # hard cells at other values of SHORTENED too

A massive row is an ordinary one plus `factor` times the ordinary norm along a coordinate axis (of several directions: one after
another). Rows are Gaussian noise, 256 wide, or the planted set "easy". Each cell is three runs with the same ordinary rows:
on these alone, with the default rule, and with max_norm_factor=None. FVU is of held-out ordinary rows, and of all held-out
rows with as many massive ones as in training, by the inference form.

A run that ends with one of the pipeline's errors (exit code 2 of a stage) has no FVU, which is one of the goals missed if
there is none of it on the ordinary rows alone. Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor

from benchmarks.planted import EASY
from benchmarks.quality import machine, sets_in_words
from pipeline.errors import PipelineError
from pipeline.evaluation.in_memory import evaluate_reconstruction
from pipeline.norms import normalizer
from pipeline.norms.exclusion import MASSIVE_FACTOR
from pipeline.training.fit import fit

RESULTS = Path("benchmarks/results/massive.md")
NOISE, WIDTH, NORM = "noise", 256, 16.0  # NORM: sqrt(WIDTH), what the ordinary norm of noise is
HELD_OUT = 4096
SHARES, FACTORS, DIRECTIONS = (64, 50, 2000), (100, 30, 2000), (1, 4)
GATES = ("topk", "batchtopk", "jumprelu", "relu")
STEPS, BATCHES = (8, 64, 256, 2000), (256, 1024, 4096)
L1_COEFFICIENT = {NOISE: 2.0, EASY.name: 1.0}  # of relu: L0 between one and some times top_k on the ordinary rows alone
MOST_WITH_RULE, MOST_WITHOUT = 1.05, 1.30  # ordinary FVU, times that of the ordinary rows alone
ALONE, RULE, OFF = "alone", "rule", "off"


class Cell(NamedTuple):
    """One combination.

    Attributes:
        rows: noise, or the planted set's name.
        share: one row in so many is massive.
        factor: length of what is added to a massive row, in ordinary norms; 0: none are.
        directions: over which axes massive rows are spread.
        gate: activation function; jumprelu's L0 is steered to top_k, relu has the sparsity loss `power`.
        steps, batch: of the run.
    """

    rows: str
    share: int
    factor: int
    directions: int
    gate: str
    steps: int
    batch: int

    def __str__(self) -> str:
        where = f"x {self.factor}, {self.directions} direction{'s' if self.directions > 1 else ''}"
        massive = f"1/{self.share} {f'massive, {where}' if self.factor else 'left out'}"
        return f"{self.rows}, {massive}, {self.gate}, {self.steps} steps of {self.batch}"


class Run(NamedTuple):
    """One run of a cell.

    Attributes:
        cell: of the ordinary rows alone with factor and directions 0, as all cells that differ in these only share it.
        massive: ALONE (massive rows are left out of the data), RULE (the default), OFF (max_norm_factor=None).
        length: value of SHORTENED, of OFF only; None: the pipeline's.
    """

    cell: Cell
    massive: str
    length: float | None = None

    def __str__(self) -> str:
        rule = {ALONE: "", RULE: ", rule on", OFF: ", rule off"}[self.massive]
        return f"{self.cell}{rule}" + ("" if self.length is None else f", shortened to {self.length:g}")


class Measured(NamedTuple):
    """What a run reached.

    Attributes:
        ordinary, every: FVU of ordinary and of all held-out rows; infinite where the reconstruction is not finite.
        l0: mean active features of an ordinary held-out row.
        seconds: of fit().
        error: what it ended with; None: it did not.
    """

    ordinary: float
    every: float
    l0: float
    seconds: float
    error: str | None = None


class Result(NamedTuple):
    """A cell's runs."""

    cell: Cell
    alone: Measured
    rule: Measured
    off: Measured


def cells() -> list[Cell]:
    """All cells, the case that was met first. Every two values of two columns meet, but for 2,000 steps of 4,096 rows."""
    case = Cell(NOISE, 64, 100, 1, "topk", 256, 256)
    short = [(8, 256), (64, 256), (256, 256), (8, 1024), (64, 1024), (8, 4096)]
    runs = [(gate, *size) for size in short for gate in GATES for _ in range(2)][:-1]
    runs += [(gate, 256, 1024) for gate in GATES[:3]] + [(gate, 2000, 256) for gate in GATES[1:]]
    runs += [("topk", 2000, 1024), ("topk", 64, 4096), ("jumprelu", 64, 4096), ("batchtopk", 256, 4096)]
    massive = itertools.cycle(_spread(list(itertools.product(SHARES, FACTORS, DIRECTIONS))))
    noise = [Cell(NOISE, *next(massive), *run) for run in runs]
    planted = [(gate, 256, batch) for batch in (256, 1024) for gate in GATES] + [("topk", 2000, 256), ("batchtopk", 64, 256)]
    return list(dict.fromkeys([case, *noise, *(Cell(EASY.name, *next(massive), *run) for run in planted)]))


def _spread(combinations: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """In an order in which neighbours differ in every place: with a stride that has no divisor in common with their number."""
    return [combinations[i * 5 % len(combinations)] for i in range(len(combinations))]


def hard_cells() -> list[Cell]:
    """Where a massive row does most harm: many of them, long, in runs of every length with every gate."""
    sizes = ((64, 256), (256, 256), (64, 1024))
    return [Cell(NOISE, 50, 2000, 4 if batch == 256 else 1, gate, steps, batch) for steps, batch in sizes for gate in GATES]


def runs_of(cell: Cell) -> tuple[Run, Run, Run]:
    """The runs that are compared: on the ordinary rows alone, with the rule, without."""
    return Run(cell._replace(factor=0, directions=0), ALONE), Run(cell, RULE), Run(cell, OFF)


def draw(cell: Cell) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training rows [n, d] and which of them are massive, bool [n]; held-out rows and which of these are."""
    n = max(8192, 4 * cell.batch)
    if cell.rows == NOISE:
        training, held_out = (
            torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed, count in enumerate((n, HELD_OUT))
        )
        norm = NORM
    else:
        planted = EASY.draw(0)
        training, held_out = planted.rows(n, "training"), planted.rows(HELD_OUT, "held out")
        norm = float(training.norm(dim=-1).median())
    return *_with_massive(training, cell, norm), *_with_massive(held_out, cell, norm)


def _with_massive(rows: Tensor, cell: Cell, norm: float) -> tuple[Tensor, Tensor]:
    massive = torch.zeros(len(rows), dtype=torch.bool)
    massive[:: cell.share] = True
    for number, row in enumerate(range(0, len(rows), cell.share) if cell.factor else ()):
        rows[row, number % cell.directions] += cell.factor * norm
    return rows, massive


def measure(run: Run) -> Measured:
    """Train and measure."""
    cell = run.cell
    training, massive, held_out, held_out_massive = draw(cell)
    size = {"expansion_factor": 4, "top_k": 16} if cell.rows == NOISE else {"d_sae": EASY.n_directions, "top_k": EASY.l0}
    trainer: dict[str, Any] = {"total_training_tokens": cell.steps * cell.batch}
    if cell.gate == "relu":
        trainer |= {"sparsity_loss_type": "power", "l1_coefficient": L1_COEFFICIENT[cell.rows]}
    usual, began = normalizer.SHORTENED, time.monotonic()
    normalizer.SHORTENED = usual if run.length is None else run.length
    try:
        found = fit(
            training[~massive] if run.massive == ALONE else training,
            dictionary={"act_fn": cell.gate, **size},
            trainer=trainer,
            batch_size=cell.batch,
            max_norm_factor=None if run.massive == OFF else MASSIVE_FACTOR,
            device="cpu",
        )
    except PipelineError as error:
        return Measured(math.inf, math.inf, 0.0, time.monotonic() - began, f"{type(error).__name__}: {error}")
    finally:
        normalizer.SHORTENED = usual
    seconds = time.monotonic() - began
    ordinary = _figures(found.inference, held_out[~held_out_massive])
    return Measured(ordinary["fvu"], _figures(found.inference, held_out)["fvu"], ordinary["l0_mean"], seconds)


def _figures(dictionary: Any, rows: Tensor) -> dict[str, float]:
    try:
        return evaluate_reconstruction(dictionary, rows)
    except PipelineError:
        return {"fvu": math.inf, "l0_mean": 0.0}


def missed(results: Iterable[Result]) -> list[str]:
    """A line for each goal that a cell misses."""
    lines = []
    for cell, alone, rule, off in results:
        for what, found, most in (("with the rule", rule, MOST_WITH_RULE), ("without the rule", off, MOST_WITHOUT)):
            if alone.error is None and found.error is not None:
                lines.append(f"{cell}: {what} ended with an error: {found.error}")
            elif found.error is None and not found.ordinary <= 1.0 and alone.ordinary < 1.0:
                lines.append(f"{cell}: {what} diverged without an error, FVU {found.ordinary:.4g}, alone {alone.ordinary:.4f}")
            elif not found.ordinary <= most * alone.ordinary:
                lines.append(
                    f"{cell}: {what} FVU {found.ordinary:.4f}, wanted <= {most:.2f} x {alone.ordinary:.4f} of the ordinary "
                    "rows alone"
                )
    return lines


def table(results: Iterable[Result]) -> list[str]:
    """Markdown: a row for each cell."""
    lines = [
        "| rows | massive | x norm | directions | gate | steps | batch | FVU of ordinary rows: alone | rule on (x alone) | "
        "rule off (x alone) | FVU of all rows: rule off | L0: alone | rule on | rule off | seconds |",
        "|" + "---|" * 15,
    ]
    for cell, alone, rule, off in results:
        where = (
            f"| {cell.rows} | 1/{cell.share} | {cell.factor} | {cell.directions} | {cell.gate} | {cell.steps} | {cell.batch}"
        )
        fvu = " | ".join([_fvu(alone), _compared(rule, alone), _compared(off, alone), _fvu(off, "every")])
        l0 = " | ".join("" if run.error else f"{run.l0:.1f}" for run in (alone, rule, off))
        lines.append(f"{where} | {fvu} | {l0} | {sum(run.seconds for run in (alone, rule, off)):.0f} |")
    return lines


def _fvu(run: Measured, figure: str = "ordinary") -> str:
    return "error" if run.error else f"{getattr(run, figure):.4g}"


def _compared(run: Measured, alone: Measured) -> str:
    return _fvu(run) if run.error or alone.error else f"{_fvu(run)} ({run.ordinary / alone.ordinary:.3f})"


def table_of_lengths(found: Mapping[Run, Measured], lengths: Sequence[float]) -> list[str]:
    """Markdown: the hard cells that were run, at each value of SHORTENED."""
    heads = [f"{length:g}: ordinary (x alone), all, L0" for length in lengths]
    lines = [f"| cell | alone, L0 | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 2)]
    for cell in hard_cells():
        alone = found.get(runs_of(cell)[0])
        runs = [found.get(Run(cell, OFF, length)) for length in lengths]
        if alone is not None and None not in runs:
            parts = [f"{_compared(run, alone)}, {_fvu(run, 'every')}, {run.l0:.1f}" for run in runs if run is not None]
            lines.append(f"| {cell} | {_fvu(alone)}, {alone.l0:.1f} | {' | '.join(parts)} |")
    return lines


def runs_in(kept: Path | None) -> dict[Run, Measured]:
    """The runs of a file of finished ones; none if there is no such file."""
    if kept is None or not kept.exists():
        return {}
    lines = (json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines())
    return {Run(Cell(*cell), massive, length): Measured(*measured) for (cell, massive, length), measured in lines}


def run_all(runs: Sequence[Run], kept: Path | None, processes: int) -> dict[Run, Measured]:
    """Each run once, those of the file not again; a line of each is printed, and kept, as it ends."""
    done = runs_in(kept)
    left = [run for run in dict.fromkeys(runs) if run not in done]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures = {pool.submit(measure, run): run for run in left}
        for future in concurrent.futures.as_completed(futures):
            run, measured = futures[future], future.result()
            end = measured.error or f"FVU {measured.ordinary:.4f}, of all rows {measured.every:.4g}, L0 {measured.l0:.2f}"
            click.echo(f"{run}: {end}, {measured.seconds:.1f} s")
            if kept is not None:
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([run, measured]) + "\n")
            done[run] = measured
    return done


def report(results: Sequence[Result], command: str, lengths: Sequence[str] = ()) -> str:
    """The text of the results file; `lengths`: the table of SHORTENED, if there is one."""
    faults = missed(results)
    planted = sets_in_words({cell.rows for cell, *_ in results} - {NOISE})
    shortened = ["", f"SHORTENED, by default {normalizer.SHORTENED:g}, on the hard cells with the rule off:", "", *lengths]
    return "\n".join(
        [
            "# What massive rows do to a dictionary",
            "",
            f"`{command}` on {machine()}.",
            f"Each cell is three runs, on the ordinary rows alone, with the rule (max_norm_factor {MASSIVE_FACTOR:g}) and "
            f"without it. {HELD_OUT:,} held-out rows. Goals: with the rule at most {MOST_WITH_RULE:g} times the FVU of the "
            f"ordinary rows alone, without it at most {MOST_WITHOUT:g} times; no FVU above 1 without an error where it is not "
            "alone.",
            "",
            f"- noise: Gaussian, width {WIDTH}, {4 * WIDTH:,} features; L0 16",
            *planted,
            "",
            *table(results),
            *(shortened if lengths else []),
            "",
            *(["Goals missed:", "", *(f"- {line}" for line in faults)] if faults else ["All goals are met."]),
            "",
        ]
    )


@click.command()
@click.option("--rows", multiple=True, type=click.Choice((NOISE, EASY.name)), help="Kinds of rows; both without it.")
@click.option("--gates", multiple=True, type=click.Choice(GATES), help="Activation functions; all without it.")
@click.option("--steps", multiple=True, type=click.Choice([str(n) for n in STEPS]), help="Lengths; all without it.")
@click.option("--batches", multiple=True, type=click.Choice([str(n) for n in BATCHES]), help="Batch sizes; all without it.")
@click.option("--lengths", multiple=True, type=float, help="Values of SHORTENED to measure on hard cells; none without it.")
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True, help="Runs at a time, one thread each.")
@click.option(
    "--runs", type=click.Path(path_type=Path), help="File of finished runs, one JSON line each; what it has is not run."
)
@click.option("--output", type=click.Path(path_type=Path), help=f"Where to write; {RESULTS} if everything is run.")
def main(
    rows: tuple[str, ...],
    gates: tuple[str, ...],
    steps: tuple[str, ...],
    batches: tuple[str, ...],
    lengths: tuple[float, ...],
    processes: int,
    runs: Path | None,
    output: Path | None,
) -> None:
    """Train, measure, compare with the goals."""
    wanted = (rows or (NOISE, EASY.name), gates or GATES, steps or map(str, STEPS), batches or map(str, BATCHES))
    chosen = [set(values) for values in wanted]

    def among(cell: Cell) -> bool:
        own = (cell.rows, cell.gate, str(cell.steps), str(cell.batch))
        return all(value in values for value, values in zip(own, chosen, strict=True))

    compared = [cell for cell in cells() if among(cell)]
    hard = [cell for cell in hard_cells() if lengths and among(cell)]
    if not compared and not hard:
        raise click.UsageError("--rows, --gates, --steps, --batches: no cell has these values")
    wanted_runs = [run for cell in compared for run in runs_of(cell)]
    wanted_runs += [run for cell in hard for run in (runs_of(cell)[0], *(Run(cell, OFF, length) for length in lengths))]
    found = run_all(wanted_runs, runs, processes)
    results = [Result(cell, *(found[run] for run in runs_of(cell))) for cell in compared]
    text = report(
        results, " ".join(["python -m benchmarks.massive", *sys.argv[1:]]), table_of_lengths(found, lengths) if hard else ()
    )
    click.echo("\n" + text)
    if output is None and not (rows or gates or steps or batches):
        output = RESULTS
    if output is not None:
        output.write_text(text)
    if missed(results):
        sys.exit(1)


if __name__ == "__main__":
    main()
