"""Damage files, run stages; kill them; count what was said and what came out.

    python -m benchmarks.faults                        # every campaign, benchmarks/results/faults.md
    python -m benchmarks.faults --seed 7 --corruptions 1000 --kills 0

Exit status 1: a silent change of a result or a traceback.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import click

from benchmarks.faults import corruptions, kills
from benchmarks.faults.cases import BAD, HARMLESS, REFUSED, SAID, SILENT, TRACEBACK, table
from benchmarks.faults.forked import import_all
from benchmarks.quality import machine

RESULTS = Path("benchmarks/results/faults.md")


@click.command()
@click.option("--corruptions", "n_corruptions", type=click.IntRange(0), default=400, help="Damaged files; 0: none.")
@click.option("--kills", "n_kills", type=click.IntRange(0), default=220, help="Killed processes; 0: none.")
@click.option("--seed", type=int, default=0, help="Of every draw.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, help="Where the tables go.")
def main(n_corruptions: int, n_kills: int, seed: int, out: Path) -> None:
    """Run the campaigns and write their tables."""
    import_all()
    work = Path(tempfile.mkdtemp())
    command = f"python -m benchmarks.faults --corruptions {n_corruptions} --kills {n_kills} --seed {seed}"
    lines, bad = ["# Faults", "", f"`{command}` on {machine()}.", ""], 0
    if n_corruptions:
        cases = corruptions.campaign(n_corruptions, seed, work / "corruptions")
        bad += sum(case.verdict in BAD for case in cases)
        lines += [
            "## Damaged files",
            "",
            "Each case damages one file that a stage reads (a bit, a digit, the end, all of it, a block of zeros, another",
            "file in its place, something appended) and runs the stage.",
            "",
            *table(cases, (REFUSED, HARMLESS, SAID, SILENT, TRACEBACK)),
            "",
        ]
    if n_kills:
        cases, killed = kills.campaign(n_kills, seed, work / "kills")
        bad += sum(case.verdict in BAD for case in cases)
        lines += [
            "## Killed processes",
            "",
            f"Each case kills a stage one to {kills.MOST_KILLS} times ({killed} kills in all; at named calls on files of",
            "the project, at random times), runs it to its end and compares every file of the project with an unbroken run's:",
            "harmless where all are equal and nothing is left over.",
            "",
            *table(cases, (REFUSED, HARMLESS, SILENT, TRACEBACK)),
            "",
        ]
    shutil.rmtree(work)
    text = "\n".join(lines).rstrip() + "\n"
    out.write_text(text)
    click.echo(text)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
