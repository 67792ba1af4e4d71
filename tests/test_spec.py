"""docs/spec.md holds: its rows name places and tests that exist, and what refers to a section refers to one that is there."""

from __future__ import annotations

import ast
import functools
import re

from benchmarks.formulas import PAGE, Formula, formulas, headings
from benchmarks.mutants import ROOT, mutants
from benchmarks.mutations import by_place

SECTIONS = ["1", "1.1", "1.2", "1.3", "1.4", "2", "2.1", "2.2", "3", "4", "5", "6", "7", "8", "9", "initializer"]
BOOKS = {"SPEC": PAGE, "CONTRACTS": ROOT / "docs" / "contracts.md"}
_REFERENCE = re.compile(r"\b(SPEC|CONTRACTS)\b(?: (initializer|\d+(?:\.\d+)?(?:(?:, | and )\d+(?:\.\d+)?)*))?")


def test_the_page_has_its_sections_in_order() -> None:
    assert headings(PAGE.read_text(encoding="utf-8")) == SECTIONS


def test_every_section_has_rows_and_every_formula_stands_once() -> None:
    rows = formulas()
    assert {row.section for row in rows} == set(SECTIONS)
    named = [(row.section, row.what) for row in rows]
    assert [name for name in named if named.count(name) > 1] == []


def test_places_exist_and_have_mutants() -> None:
    """A place without a mutant can't be shown to be guarded."""
    faults = []
    for where in by_place(formulas()):
        try:
            faults += [] if mutants(where) else [f"{where}: no operator changes it"]
        except LookupError as error:
            faults.append(f"{where}: {error}")
    assert faults == []


def test_tests_exist() -> None:
    named = [(row, test) for row in formulas() for test in row.tests]
    assert [f"{row.section}, {row.what}: {test}" for row, test in named if not _is_there(test)] == []
    assert [row for row in formulas() if not row.tests] == []


@functools.cache
def _functions(file: str) -> frozenset[str]:
    """Names of the test functions of a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def _is_there(test: str) -> bool:
    file, _, name = test.partition("::")
    return (ROOT / file).is_file() and name in _functions(file)


def test_no_test_of_the_page_stands_outside_a_row() -> None:
    named = re.findall(r"tests/[\w/]+\.py::\w+", PAGE.read_text(encoding="utf-8"))
    assert len(named) == sum(len(row.tests) for row in formulas())


def test_references_point_to_headings() -> None:
    known = {book: set(headings(page.read_text(encoding="utf-8"))) for book, page in BOOKS.items()}
    faults = []
    for folder in ("pipeline", "stages", "tests", "benchmarks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if file.samefile(__file__):
                continue
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                for book, sections in _REFERENCE.findall(line):
                    lacking = [name for name in re.split(r", | and ", sections) if name not in known[book]]
                    faults += [f"{file.relative_to(ROOT)}:{number}: {book} {name or '(no section)'}" for name in lacking]
                if re.search(r"\bDESIGN\b", line):
                    faults.append(f"{file.relative_to(ROOT)}:{number}: DESIGN is not in the repository")
    assert faults == []


def test_a_page_is_read_as_it_is_written() -> None:
    page = """# Title

## 3. Norms
- a point that is no row

- x is halved: `pipeline.halves:Half.of`
  `tests/test_halves.py::test_one`,
  `tests/test_halves.py::test_two`
### 3.1 More
- y with `code` in it, over
  two lines: `pipeline.more:WHOLE` `tests/test_more.py::test_it`
## Initializer
- z: `pipeline.start:draw`
"""
    assert formulas(page) == [
        Formula(
            "3", "x is halved", "pipeline.halves:Half.of", ("tests/test_halves.py::test_one", "tests/test_halves.py::test_two")
        ),
        Formula("3.1", "y with `code` in it, over two lines", "pipeline.more:WHOLE", ("tests/test_more.py::test_it",)),
        Formula("initializer", "z", "pipeline.start:draw", ()),
    ]
