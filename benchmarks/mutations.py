"""Whether the tests of docs/spec.md notice when a formula is changed.

    python -m benchmarks.mutations                              # every formula: an hour or two
    python -m benchmarks.mutations --section 2.1 --mutants 4    # one section, four mutants of each function
    python -m benchmarks.mutations --sample 10 --seed 3         # ten formulas

Of each function that a row of the page names, mutants are made (benchmarks/mutants.py), and the tests of all of its rows are
run with each, in a process of its own. A mutant that no test notices survives; a formula has noticed what its own tests have.
Where none of the first mutants is one that a formula's tests notice, the function's further ones are tried until one is.

Exit status 1: a formula whose tests notice no mutant at all, a function of whose mutants a larger share survives than
--survivors (those of equivalent_mutants.yaml do not count), or tests that fail as things are.
"""

from __future__ import annotations

import concurrent.futures
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import yaml

from benchmarks.formulas import PAGE, Formula, formulas, headings
from benchmarks.mutant_runs import preload, run_tests
from benchmarks.mutants import ROOT, Mutant, mutants

EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")
PATIENCE, LEAST_S = 5.0, 30.0  # a mutant's tests may take so many times what they take without it, at least so long


@dataclass
class Examined:
    """What the mutants of a function have shown.

    Attributes:
        where: the function.
        noticed: {formula: number of mutants that its tests have noticed}.
        seconds: that its tests take without a mutant.
        tried: mutants that were run for all tests.
        survivors: changes of those that no test has noticed.
        further: mutants that were tried because a formula had noticed none.
        stale: changes listed as equivalent that are no mutants.
        fault: what kept the tests from being run at all.
    """

    where: str
    noticed: dict[Formula, int]
    seconds: float = 0.0
    tried: int = 0
    survivors: list[str] = field(default_factory=list)
    further: int = 0
    stale: list[str] = field(default_factory=list)
    fault: str = ""

    def faults(self, share: float) -> list[str]:
        """Why the exit status is 1."""
        if self.fault:
            return [self.fault]
        blind = [f"{row.section}, {row.what}: its tests notice no mutant" for row, n in self.noticed.items() if not n]
        if self.tried and len(self.survivors) > share * self.tried:
            blind.append(f"{len(self.survivors)} of {self.tried} mutants survive, more than {share:.0%}")
        return blind


def examine(
    where: str,
    rows: Sequence[Formula],
    *,
    number: int,
    seed: int,
    equivalent: Mapping[str, str] | None = None,
    root: Path = ROOT,
) -> Examined:
    """Run the tests of a function's formulas on its mutants.

    Args:
        where: the function.
        rows: its formulas.
        number: mutants that are run in any case; 0: all.
        seed: of their choice.
        equivalent: changes that are left out.
        root: the folder that the package and the tests are in.
    """
    found = Examined(where, dict.fromkeys(rows, 0))
    tests = list(dict.fromkeys(test for row in rows for test in row.tests))
    plain = run_tests(tests, root=root)
    if plain.wrong or plain.failed:
        found.fault = f"as things are, {', '.join(sorted(plain.failed)) or 'the tests cannot be run'}: failed\n{plain.wrong}"
        return found
    made = [mutant() for mutant in mutants(where, root)]
    found.stale = sorted(set(equivalent or {}) - {mutant.change for mutant in made})
    made = [mutant for mutant in made if mutant.change not in (equivalent or {})]
    random.Random(f"{seed} {where}").shuffle(made)
    found.seconds = plain.seconds
    limit_s = max(LEAST_S, PATIENCE * plain.seconds)
    for place, mutant in enumerate(made):
        blind = [row for row, n in found.noticed.items() if not n]
        if number and place >= number:
            if not blind:
                break
            found.further += 1
            _try(found, mutant, list(dict.fromkeys(t for row in blind for t in row.tests)), root, limit_s)
        elif (noticed := _try(found, mutant, tests, root, limit_s)) is not None:
            found.tried += 1
            found.survivors += [] if noticed else [mutant.change]
    return found


def _try(found: Examined, mutant: Mutant, tests: list[str], root: Path, limit_s: float) -> bool | None:
    """Run tests on a mutant and count who has noticed; whether anyone has. None: a mutant that cannot be imported."""
    outcome = run_tests(tests, found.where.partition(":")[0], mutant.source, root=root, limit_s=limit_s)
    if outcome.wrong:
        return None
    for row in found.noticed:
        found.noticed[row] += any(test in outcome.failed for test in row.tests)
    return bool(outcome.failed)


def report(found: Examined) -> str:
    """What an examination has shown, in lines."""
    alive = f"{found.tried} mutants, {len(found.survivors)} survived" if found.tried else "no mutant was run"
    lines = [f"{found.where}: {alive}" + (f", {found.further} further ones were tried" if found.further else "")]
    lines[0] += f" ({found.seconds:.0f} s each)" if found.seconds >= 10 else ""
    lines += [f"  {row.section}, {row.what}: {n} noticed" for row, n in found.noticed.items()]
    lines += [f"  survived: {_shown(change)}" for change in found.survivors]
    lines += [f"  no mutant any more: {change}" for change in found.stale]
    return "\n".join(lines)


def _shown(change: str) -> str:
    return " ".join(change.split())


def by_place(rows: Iterable[Formula]) -> dict[str, list[Formula]]:
    """Rows by the function that computes them."""
    found: dict[str, list[Formula]] = {}
    for row in rows:
        found.setdefault(row.where, []).append(row)
    return found


@click.command()
@click.option("--section", "sections", multiple=True, help="A section of docs/spec.md (may be given more than once); else all.")
@click.option("--what", default="", help="Formulas whose text or function holds this.")
@click.option("--sample", type=click.IntRange(0), default=0, help="So many of them, drawn; 0: all.")
@click.option("--mutants", "number", type=click.IntRange(0), default=8, show_default=True, help="Of each function; 0: all.")
@click.option("--seed", default=0, show_default=True, help="Of the sample and of the choice of mutants.")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Functions at a time.")
@click.option("--survivors", "share", type=click.FloatRange(0, 1), default=0.75, show_default=True,
              help="Largest share of a function's mutants that may survive.")  # fmt: skip
def main(sections: tuple[str, ...], what: str, sample: int, number: int, seed: int, processes: int, share: float) -> None:
    """Change formulas and see whether their tests notice."""
    known = headings(PAGE.read_text(encoding="utf-8"))
    if unknown := set(sections) - set(known):
        raise click.UsageError(f"docs/spec.md has no section {', '.join(sorted(unknown))}; it has {', '.join(known)}")
    every = formulas()
    rows = [row for row in every if not sections or row.section in sections]
    rows = [row for row in rows if what in row.what or what in row.where]
    if sample:
        rows = random.Random(seed).sample(rows, min(sample, len(rows)))
    places = {row.where for row in rows}
    groups = by_place(row for row in every if row.where in places)  # what survives one formula's tests another's may notice
    equivalent = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8"))
    preload()
    faults: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        futures = [
            pool.submit(examine, where, group, number=number, seed=seed, equivalent=equivalent.get(where))
            for where, group in groups.items()
        ]
        for future in futures:
            found = future.result()
            click.echo(report(found))
            faults += [f"{found.where}: {fault}" for fault in found.faults(share)]
    n_formulas = sum(map(len, groups.values()))
    click.echo("\n".join(["", f"{n_formulas} formulas in {len(futures)} functions, {len(faults)} faults", *faults]))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
