"""The rows of docs/spec.md: a formula, the place that computes it and the tests that guard it.

A row is an item of a list below the heading of its section:

    - what the formula says: `pipeline.module:Class.method`
      `tests/test_file.py::test_name`, `tests/test_file.py::test_other`

The page is the only place that has them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from benchmarks.mutants import ROOT

PAGE = ROOT / "docs" / "spec.md"
_HEADING = re.compile(r"#+ +(?:(\d+(?:\.\d+)*)\b|(Initializer\b))")
_ITEM = re.compile(r"^- .*(?:\n  .*)*", re.MULTILINE)
_PLACE = re.compile(r":\s+`(\w+(?:\.\w+)*:\w+(?:\.\w+)*)`")
_TEST = re.compile(r"`([\w./-]+\.py::\w+)`")


class Formula(NamedTuple):
    """A row.

    Attributes:
        section: number of the heading above it, or "initializer".
        what: the formula.
        where: the function, method or constant that computes it, `module:Class.method`.
        tests: node ids of the tests that guard it, without parameters.
    """

    section: str
    what: str
    where: str
    tests: tuple[str, ...]


def headings(page: str) -> list[str]:
    """Numbers of a page's headings, and "initializer", in order."""
    found = (_HEADING.match(line) for line in page.splitlines())
    return [(match[1] or match[2]).lower() for match in found if match]


def formulas(page: str | None = None) -> list[Formula]:
    """The rows of a page (None: docs/spec.md), in order."""
    text = PAGE.read_text(encoding="utf-8") if page is None else page
    section, found = "", []
    for block in re.split(r"^(?=#)", text, flags=re.MULTILINE):
        section = next(iter(headings(block)), section)
        for item in _ITEM.findall(block):
            if place := _PLACE.search(item):
                what = " ".join(item[2 : place.start()].split())
                found.append(Formula(section, what, place[1], tuple(_TEST.findall(item, place.end()))))
    return found
