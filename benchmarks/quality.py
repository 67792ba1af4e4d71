"""What the defaults reach on planted data: fit() with nothing stated but width, L0 and length, against the project's goals.

The longer runs of BatchTopK and JumpReLU are made a second time with trainer.topk_start_steps 0.9, the option for recovering
directions: the goal for recovery is for these (and for TopK).

    python -m benchmarks.quality                              # everything; writes benchmarks/results/quality.md
    python -m benchmarks.quality --sets main --act-fns topk --tokens 198000 --seeds 1
    python -m benchmarks.quality --runs runs.jsonl            # keeps every run there; started again, goes on after the last

Each seed is a draw of the data (planted.py) and, apart from it, of the dictionary. 200,000 training rows; FVU and dead
features on 20,000 held-out rows, served L0 on 200,000 further rows that nothing was fitted to (L0 varies from row to row as
much as its mean, so that fewer rows could not tell 1 %). All through the inference form, whose thresholds fit() sets on
rows that it does not train on. A goal is compared with the median over seeds. Exit status 1 if one is missed.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import torch
from torch import Tensor

from benchmarks.planted import EASY, MAIN, SECOND, SETS, PlantedSet
from pipeline.dictionaries.base import Dictionary
from pipeline.evaluation.in_memory import evaluate_reconstruction
from pipeline.suites.recovery import recovery
from pipeline.training.fit import fit

RESULTS = Path("benchmarks/results/quality.md")
TRAINING_ROWS, HELD_OUT_ROWS, FRESH_ROWS = 200_000, 20_000, 200_000
BATCH = 2048
SEEDS = 3
ACT_FNS = ("topk", "batchtopk", "jumprelu")
TOPK_START = 0.9  # trainer.topk_start_steps of the runs that have one
TOKENS = {MAIN.name: (198_000, 1_000_000), SECOND.name: (198_000, 1_000_000), EASY.name: (2_000_000,)}
FIGURES = {"fvu": "FVU", "dead": "dead", "l0_error": "L0 off by", "recovery": "recovered"}
FORMATS = {"fvu": "{:.4f}", "dead": "{:.2%}", "l0_error": "{:.2%}", "recovery": "{:.4f}"}
# (set, tokens, activation function): the most FVU.
MOST_FVU = {
    (MAIN.name, 198_000, "topk"): 0.22,
    (MAIN.name, 198_000, "batchtopk"): 0.28,
    (MAIN.name, 198_000, "jumprelu"): 0.29,
    (MAIN.name, 1_000_000, "topk"): 0.165,
    (MAIN.name, 1_000_000, "batchtopk"): 0.22,
    (MAIN.name, 1_000_000, "jumprelu"): 0.22,
}
MOST_DEAD = {"topk": 0.005, "batchtopk": 0.01, "jumprelu": 0.01}
MOST_L0_ERROR = {"batchtopk": 0.01, "jumprelu": 0.02}
# (set, tokens): the least recovery.
LEAST_RECOVERY = {(MAIN.name, 1_000_000): 0.95, (SECOND.name, 1_000_000): 0.95, (EASY.name, 2_000_000): 0.98}


class Case(NamedTuple):
    """One run.

    Attributes:
        planted: the set's name.
        tokens: trained on.
        act_fn: activation function.
        start: whether the run starts with a per-token TopK gate.
        seed: of the data and of the dictionary.
    """

    planted: str
    tokens: int
    act_fn: str
    start: bool
    seed: int

    def __str__(self) -> str:
        return f"{self.planted}, {self.tokens:,} tokens, {self.gate}"

    @property
    def gate(self) -> str:
        """The activation function in words."""
        return f"{self.act_fn} with TopK start" if self.start else self.act_fn


class Measured(NamedTuple):
    """What a run reached.

    Attributes:
        fvu: of the held-out rows.
        dead: share of features that are never active on them.
        l0_error: |L0 / wanted - 1| of the fresh rows.
        recovery: mean over planted directions of the largest cosine similarity with a decoder row.
        l0: of the fresh rows.
        seconds: of fit().
    """

    fvu: float
    dead: float
    l0_error: float
    recovery: float
    l0: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Goal:
    """A bound on a figure's median: `most` or `least`."""

    figure: str
    most: float | None = None
    least: float | None = None

    def met(self, value: float) -> bool:
        """Whether `value` is within the bound, which is included."""
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)

    def __str__(self) -> str:
        bound = self.most if self.least is None else self.least
        return f"{'<=' if self.least is None else '>='} {FORMATS[self.figure].format(bound)}"


def goals(case: Case) -> list[Goal]:
    """The goals of a case; the seed does not matter."""
    found = []
    if (most := MOST_FVU.get(case[:3])) is not None and not case.start:
        found.append(Goal("fvu", most=most))
    found.append(Goal("dead", most=MOST_DEAD[case.act_fn]))
    if case.act_fn in MOST_L0_ERROR:
        found.append(Goal("l0_error", most=MOST_L0_ERROR[case.act_fn]))
    if (least := LEAST_RECOVERY.get((case.planted, case.tokens))) is not None and (case.start or case.act_fn == "topk"):
        found.append(Goal("recovery", least=least))
    return found


def run_all(about: PlantedSet, cases: Sequence[Case], kept: Path | None) -> list[tuple[Case, Measured]]:
    """Run cases of one set and seed on one draw of the data; a line of each is printed, and kept, as it ends."""
    data = about.draw(cases[0].seed)
    training, held_out, fresh = (
        data.rows(n, part) for n, part in ((TRAINING_ROWS, "training"), (HELD_OUT_ROWS, "held out"), (FRESH_ROWS, "fresh"))
    )
    found = []
    for case in cases:
        began = time.monotonic()
        result = fit(
            training,
            dictionary={"act_fn": case.act_fn, "d_sae": about.n_directions, "top_k": about.l0},
            trainer={"total_training_tokens": case.tokens, **({"topk_start_steps": TOPK_START} if case.start else {})},
            batch_size=BATCH,
            seed=case.seed,
            device="cpu",
        )
        seconds = time.monotonic() - began
        metrics = evaluate_reconstruction(result.inference, held_out)
        l0 = mean_l0(result.inference, fresh)
        recovered = float(recovery(data.directions, result.inference.decoder_rows().detach()).mean())
        dead, error = metrics["dead_fraction"], abs(l0 / about.l0 - 1)
        measured = Measured(metrics["fvu"], dead, error, recovered, l0, seconds)
        figures = ", ".join(f"{name} {value:.4f}" for name, value in measured._asdict().items())
        click.echo(f"{case}, seed {case.seed}: {figures}")
        if kept is not None:
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps([case._asdict(), measured._asdict()]) + "\n")
        found.append((case, measured))
    return found


def runs_in(kept: Path | None) -> dict[Case, Measured]:
    """The runs of a file that run_all() wrote; none if there is no such file."""
    if kept is None or not kept.exists():
        return {}
    pairs = (json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines())
    return {Case(**case): Measured(**measured) for case, measured in pairs}


@torch.no_grad()
def mean_l0(dictionary: Dictionary, rows: Tensor) -> float:
    """Mean number of active features of a row. rows: [N, D]."""
    return sum(int((dictionary.encode(part) != 0).sum()) for part in rows.split(4096)) / len(rows)


def missed(results: Iterable[tuple[Case, Measured]]) -> list[str]:
    """A line for each goal that the median over seeds misses."""
    lines = []
    for case, runs in _by_case(results).items():
        for goal in goals(case):
            value = statistics.median(getattr(run, goal.figure) for run in runs)
            if not goal.met(value):
                figure = f"{FIGURES[goal.figure]} {FORMATS[goal.figure].format(value)}, wanted {goal}"
                lines.append(f"{case}: {figure}")
    return lines


def _by_case(results: Iterable[tuple[Case, Measured]]) -> dict[Case, list[Measured]]:
    """Runs that differ in their seed only, under seed 0."""
    found: dict[Case, list[Measured]] = {}
    for case, measured in results:
        found.setdefault(case._replace(seed=0), []).append(measured)
    return found


def table(results: Iterable[tuple[Case, Measured]]) -> list[str]:
    """Markdown: median (least to greatest) over seeds, and the goal."""
    lines = [
        f"| set | tokens | act_fn | {' | '.join(FIGURES.values())} | L0 | seconds |",
        "|" + "---|" * (len(FIGURES) + 5),
    ]
    order = {name: i for i, name in enumerate((*SETS, *ACT_FNS))}
    grouped = _by_case(results)
    for case in sorted(grouped, key=lambda c: (order[c.planted], c.tokens, order[c.act_fn], c.start)):
        runs = grouped[case]
        wanted = {goal.figure: goal for goal in goals(case)}
        cells = []
        for figure, form in FORMATS.items():
            values = [getattr(run, figure) for run in runs]
            cell = form.format(statistics.median(values))
            if len(values) > 1:
                cell += f" ({form.format(min(values))} to {form.format(max(values))})"
            cells.append(f"{cell}; {wanted[figure]}" if figure in wanted else cell)
        l0 = statistics.median(run.l0 for run in runs)
        seconds = statistics.median(run.seconds for run in runs)
        lines.append(f"| {case.planted} | {case.tokens:,} | {case.gate} | {' | '.join(cells)} | {l0:.2f} | {seconds:.0f} |")
    return lines


def sets_in_words(names: Iterable[str]) -> list[str]:
    """A line of markdown on each set."""
    lines = []
    for name in names:
        about = SETS[name]
        use = "used alike" if about.exponent == 0 else f"used in proportion to rank^-{about.exponent:g}"
        lines.append(
            f"- {name}: width {about.width}, {about.n_directions:,} directions (and features) {use}, {about.active:g} active "
            f"a row, shared mean of norm {about.mean_norm:g}, noise {about.noise_norm:g}, times {about.scale:g}; L0 {about.l0}"
        )
    return lines


def machine() -> str:
    """Processor, cores and versions."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores of {processor}, no GPU used"


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


def report(results: Sequence[tuple[Case, Measured]], command: str) -> str:
    """The text of the results file."""
    faults = missed(results)
    seeds = len({case.seed for case, _ in results})
    return "\n".join(
        [
            "# What the defaults reach on planted data",
            "",
            f"`{command}` on {machine()}.",
            f"Median over {seeds} seed{'s' if seeds > 1 else ''} (least to greatest); goal. FVU and dead features on "
            f"{HELD_OUT_ROWS:,} held-out rows, L0 on {FRESH_ROWS:,} further ones.",
            "",
            *sets_in_words(name for name in SETS if name in {case.planted for case, _ in results}),
            "",
            *table(results),
            "",
            *(["Goals missed:", "", *(f"- {line}" for line in faults)] if faults else ["All goals are met."]),
            "",
        ]
    )


def _cases(name: str, tokens: int, act_fn: str, seed: int) -> list[Case]:
    """The default, and for recovery a run with the TopK start."""
    both = act_fn != "topk" and (name, tokens) in LEAST_RECOVERY
    return [Case(name, tokens, act_fn, start, seed) for start in ((False, True) if both else (False,))]


@click.command()
@click.option("--sets", multiple=True, type=click.Choice(tuple(SETS)), help="Sets; all without it.")
@click.option("--act-fns", multiple=True, type=click.Choice(ACT_FNS), help="Activation functions; all without it.")
@click.option("--tokens", multiple=True, type=int, help="Lengths, of those of the sets; all without it.")
@click.option("--seeds", type=click.IntRange(1), default=SEEDS, show_default=True, help="Number of seeds.")
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True, help="Runs at a time, one thread each.")
@click.option(
    "--runs", type=click.Path(path_type=Path), help="File of finished runs, one JSON line each; what it has is not run."
)
@click.option("--output", type=click.Path(path_type=Path), help=f"Where to write; {RESULTS} if everything is run.")
def main(
    sets: tuple[str, ...],
    act_fns: tuple[str, ...],
    tokens: tuple[int, ...],
    seeds: int,
    processes: int,
    runs: Path | None,
    output: Path | None,
) -> None:
    """Train, measure, compare with the goals."""
    groups = []
    for seed in range(seeds):
        for name in sets or SETS:
            lengths = [n for n in TOKENS[name] if not tokens or n in tokens]
            if lengths:
                groups.append(
                    [case for n in lengths for act_fn in act_fns or ACT_FNS for case in _cases(name, n, act_fn, seed)]
                )
    if not groups:
        raise click.UsageError(f"--tokens: nothing to run; the sets' lengths are {TOKENS}")
    kept = runs_in(runs)
    results = [(case, kept[case]) for group in groups for case in group if case in kept]
    groups = [left for group in groups if (left := [case for case in group if case not in kept])]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for done in concurrent.futures.as_completed([pool.submit(run_all, SETS[c[0].planted], c, runs) for c in groups]):
            results += done.result()
    results.sort()
    text = report(results, " ".join(["python -m benchmarks.quality", *sys.argv[1:]]))
    click.echo("\n" + text)
    if output is None and seeds >= SEEDS and not (sets or act_fns or tokens):
        output = RESULTS
    if output is not None:
        output.write_text(text)
    if missed(results):
        sys.exit(1)


if __name__ == "__main__":
    main()
