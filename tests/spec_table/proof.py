"""What is wrong with a row of the table; to be asked in a process of its own, since modules are imported once."""

from __future__ import annotations

from tests.spec_table.mutant import failures
from tests.spec_table.rows import ROOT, Row


def verdict(row: Row) -> str | None:
    """What is wrong with a row: the wrong form is not noticed by each of its tests, or breaks more than they test."""
    for test in row.tests:
        failed, wrong = failures(ROOT, [test], row.file, row.mutated())
        if wrong:
            return f"{test} could not be run:\n{wrong}"
        if failed != [test]:
            return f"{test} passes with {row.new!r} for {row.old!r} in {row.file}"
    return None


def unchanged(tests: list[str]) -> str | None:
    """What fails without a change."""
    failed, wrong = failures(ROOT, tests)
    return wrong or (f"fails as it is: {failed[0]}" if failed else None)
