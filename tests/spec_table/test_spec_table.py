"""The table is complete and current, and its runner tells a test that notices from one that does not.

`python -m tests.spec_table` runs it all.
"""

from __future__ import annotations

import ast
import concurrent.futures
import functools
import multiprocessing

import pytest

from tests.spec_table.proof import verdict
from tests.spec_table.rows import PAGE, ROOT, Row, all_rows, page, sections

SECTIONS = {"1.1", "1.2", "1.3", "1.4", "2", "2.1", "2.2", "3", "4", "5", "6", "7", "initializer"}


@functools.cache
def functions(file: str) -> frozenset[str]:
    """Names of the test functions of a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_every_section_has_rows() -> None:
    assert set(sections()) >= SECTIONS
    assert all(row.tests for row in all_rows())


@pytest.mark.parametrize("row", all_rows(), ids=lambda row: f"{row.section}: {row.what}")
def test_places_and_tests_are_there(row: Row) -> None:
    assert row.mutated() != (ROOT / row.file).read_text(encoding="utf-8")
    compile(row.mutated(), row.file, "exec")
    for test in row.tests:
        file, _, name = test.partition("::")
        assert name in functions(file), test


def test_no_formula_twice() -> None:
    named = [(row.section, row.what) for row in all_rows()]
    assert len(named) == len(set(named))


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tests.spec_table --write`"


def test_the_runner_sees_a_test_that_notices_and_one_that_does_not() -> None:
    """In processes of their own: this one has imported the project."""
    norms = "tests/test_norms.py::test_factors_by_hand"
    place = ("pipeline/norms.py", "return math.sqrt(hook_norm.d) / hook_norm.mean_norm")
    noticed = Row("3", "a wrong factor", *place, "return 1 / hook_norm.mean_norm", (norms,))
    unnoticed = Row("3", "the same factor", *place, "return hook_norm.d ** 0.5 / hook_norm.mean_norm", (norms,))
    broken = Row("3", "a module that cannot be imported", *place, "return (", (norms,))
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        first, second, third = pool.map(verdict, (noticed, unnoticed, broken))
    assert first is None
    assert "passes with" in str(second)
    assert "could not be run" in str(third)
