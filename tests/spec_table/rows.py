"""The table: what a formula says, where it is computed, a wrong form of that place, and tests that fail with it.

One YAML file per section, rows/<section>.yaml, each row {what, file, old, new, tests}: `old` occurs exactly once in `file`,
`tests` are pytest node ids without parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
ROWS = Path(__file__).parent / "rows"
PAGE = ROOT / "docs" / "spec.md"


class Row(NamedTuple):
    """One formula.

    Attributes:
        section: of the specification, or "initializer".
        what: the formula in words.
        file: where it is computed, relative to the repository.
        old, new: the place, and a wrong form of it.
        tests: node ids of tests that fail with the wrong form.
    """

    section: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def mutated(self) -> str:
        """The source with the wrong form.

        Raises:
            ValueError: `old` is not there exactly once.
        """
        source = (ROOT / self.file).read_text(encoding="utf-8")
        if source.count(self.old) != 1:
            raise ValueError(f"{self.section}, {self.what}: found {source.count(self.old)} times in {self.file}: {self.old!r}")
        return source.replace(self.old, self.new)


def sections() -> list[str]:
    """Names of the sections, in order."""
    return sorted(path.stem for path in ROWS.glob("*.yaml"))


def load(section: str) -> list[Row]:
    """The rows of a section."""
    found = yaml.safe_load((ROWS / f"{section}.yaml").read_text(encoding="utf-8"))
    return [Row(section, tests=tuple(row.pop("tests")), **row) for row in found]


def all_rows() -> list[Row]:
    """Every row, by section."""
    return [row for section in sections() for row in load(section)]


def page() -> str:
    """docs/spec.md."""
    lines = [
        "# Every formula has a test",
        "",
        "Which test fails when a formula is changed, by section of the specification. `python -m tests.spec_table` proves it: it",
        "puts a wrong form in each formula's place (in memory) and expects the tests of its row to fail.",
    ]
    for section in sections():
        lines += ["", f"## {section}", "", "| formula | computed in | test |", "|---|---|---|"]
        for row in load(section):
            tests = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in row.tests)
            lines.append(f"| {row.what.replace('|', chr(92) + '|')} | `{row.file}` | {tests} |")
    return "\n".join([*lines, ""])
