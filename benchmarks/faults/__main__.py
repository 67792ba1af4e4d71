"""Damage files, try parameters, kill processes; count what was said and what came out.

    python -m benchmarks.faults                        # every campaign, benchmarks/results/faults.md
    python -m benchmarks.faults --seed 7 --corruptions 1000 --parameters 0 --kills 0

Exit status 1: a silent change of a result, a traceback, a process that ran out of memory or time.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import click

from benchmarks.faults import corruptions, kills, parameters
from benchmarks.faults.cases import BAD, section
from benchmarks.faults.forked import import_all
from benchmarks.quality import machine

RESULTS = Path("benchmarks/results/faults.md")
CAMPAIGNS = {"corruptions": corruptions, "parameters": parameters, "kills": kills}


@click.command()
@click.option("--corruptions", type=click.IntRange(0), default=400, help="Damaged files; 0: none.")
@click.option("--parameters", type=click.IntRange(0), default=520, help="Odd parameters; 0: none.")
@click.option("--kills", type=click.IntRange(0), default=220, help="Killed processes; 0: none.")
@click.option("--seed", type=int, default=0, help="Of every draw.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, help="Where the tables go.")
def main(seed: int, out: Path, **counts: int) -> None:
    """Run the campaigns and write their tables."""
    import_all()
    options = " ".join(f"--{name} {count}" for name, count in counts.items())
    lines = ["# Faults", "", f"`python -m benchmarks.faults {options} --seed {seed}` on {machine()}.", ""]
    bad = False
    work = Path(tempfile.mkdtemp())
    for name in (name for name in CAMPAIGNS if counts[name]):
        module = CAMPAIGNS[name]
        cases = module.campaign(counts[name], seed, work / name)
        bad |= any(case.verdict in BAD for case in cases)
        lines += section(module.TITLE, module.ABOUT, module.VERDICTS, cases)
        out.write_text("\n".join(lines).rstrip() + "\n")  # what is done stands, whatever becomes of the rest
    shutil.rmtree(work)
    click.echo(out.read_text())
    sys.exit(bad)


if __name__ == "__main__":
    main()
