"""The longest files and functions, to be looked at: a report, no rule.

python -m tests.sizes
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("pipeline", "stages", "benchmarks", "tests")


def longest(count: int = 8) -> list[str]:
    """`lines place` of the longest files, then of the longest functions."""
    files, functions = [], []
    for path in (path for place in PLACES for path in (ROOT / place).rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        files.append((text.count("\n"), name))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append(((node.end_lineno or node.lineno) - node.lineno + 1, f"{name}:{node.lineno} {node.name}"))
    return [f"{lines:5d} {where}" for found in (files, functions) for lines, where in sorted(found, reverse=True)[:count]]


if __name__ == "__main__":
    sys.stdout.write("\n".join(longest()) + "\n")
