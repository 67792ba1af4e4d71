"""Runs tests with one source file changed in memory; for a process that has not imported the project yet."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module from other source than its file's; writes no bytecode."""

    source = ""

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, file: Path, source: str) -> None:
        self.file, self.source = file.resolve(), source

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.origin is None or Path(spec.origin).resolve() != self.file:
            return None
        loader = _Loader(name, spec.origin)
        loader.source = self.source
        spec.loader = loader
        return spec


class _Failures:
    """Which tests failed in their call, and whether anything else went wrong."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.errors: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            (self.failed if report.when == "call" else self.errors).append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.append(report.nodeid)


def failures(root: Path, tests: Sequence[str], file: str | None = None, source: str | None = None) -> tuple[list[str], str]:
    """Run tests up to the first failure, with `file` as `source` if given.

    Returns: node ids of failed tests (without parameters), and the output if the run went wrong otherwise ("" if not).
    """
    os.chdir(root)
    sys.path.insert(0, str(root))
    if file is not None and source is not None:
        sys.meta_path.insert(0, _Finder(root / file, source))
    seen, output = _Failures(), io.StringIO()
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", *tests]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = pytest.main(arguments, plugins=[seen])
    wrong = bool(seen.errors) or status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    return [name.partition("[")[0] for name in seen.failed], output.getvalue()[-3000:] if wrong else ""
