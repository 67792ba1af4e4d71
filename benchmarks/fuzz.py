"""Fuzz the readers of files that others may write, longer than the tests do.

    python -m benchmarks.fuzz --minutes 30
    python -m benchmarks.fuzz --target features --first 1200 --minutes 0.01    # input 1200 again

Exit status 1: something else than a result or one line for each fault.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from tests.fuzz.hunting import hunt
from tests.fuzz.targets import targets


@click.command()
@click.option("--minutes", type=float, default=30.0, show_default=True, help="Of all targets together.")
@click.option("--target", "names", multiple=True, help="Only this one; may be repeated.")
@click.option("--first", type=int, default=0, help="Number of the first input, its seed; later ones count on.")
def main(minutes: float, names: tuple[str, ...], first: int) -> None:
    """Print how many inputs each reader was given and what was found."""
    bad = 0
    with tempfile.TemporaryDirectory() as seeds:
        chosen = [target for target in targets(Path(seeds)) if not names or target.name in names]
        if not chosen:
            raise click.UsageError(f"no target of the name {', '.join(names)}")
        click.echo("| reader | inputs | refused | slowest (s) | finds |\n|---|---|---|---|---|")
        for target in chosen:
            found = hunt(target, 60 * minutes / len(chosen), first)
            click.echo(f"| {target.name} | {found.inputs:,} | {found.refused:,} | {found.slowest:.2f} | {len(found.finds)} |")
            for place, (number, text) in found.finds.items():
                click.echo(f"\n{target.name}: {place}, input {number}\n{text}\n", err=True)
            bad += len(found.finds)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
