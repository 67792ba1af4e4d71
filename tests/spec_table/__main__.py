"""python -m tests.spec_table: put a wrong form in the place of each formula and see that its tests fail.

python -m tests.spec_table --section 5          # one section
python -m tests.spec_table --write              # docs/spec.md anew, nothing is run
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import sys

import click

from tests.spec_table.proof import unchanged, verdict
from tests.spec_table.rows import PAGE, ROOT, all_rows, page, sections


@click.command()
@click.option("--section", type=click.Choice(sections()), help="One section; all without it.")
@click.option("--what", help="Rows whose description holds this text.")
@click.option("--processes", default=2, show_default=True, help="Rows at a time.")
@click.option("--write", is_flag=True, help=f"Write {PAGE.relative_to(ROOT)} and run nothing.")
def main(section: str | None, what: str | None, processes: int, write: bool) -> None:
    """Prove the table."""
    if write:
        PAGE.write_text(page(), encoding="utf-8")
        return
    rows = [row for row in all_rows() if section in (None, row.section) and (what or "") in row.what]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "numpy"])
    wrong = 0
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool:
        as_it_is = pool.submit(unchanged, sorted({test for row in rows for test in row.tests}))
        for row, fault in zip(rows, pool.map(verdict, rows), strict=True):
            if fault is not None:
                wrong += 1
                click.echo(f"{row.section}, {row.what}: {fault}")
        if (fault := as_it_is.result()) is not None:
            wrong += 1
            click.echo(fault)
    click.echo(f"{len(rows)} formulas, {wrong} faults")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
