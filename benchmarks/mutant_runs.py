"""Runs tests on the package with one module replaced by a mutant, each time in a process of its own.

The module is replaced as it is imported: the process has the package as a copy with the mutant in it, and no file is changed.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import io
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import pytest

from benchmarks.mutants import ROOT

ENDS_WITHIN_S = 10.0  # after its result, in which it frees what it has taken
_CONTEXT = multiprocessing.get_context("forkserver")


class Outcome(NamedTuple):
    """What became of a run of tests.

    Attributes:
        failed: node ids without parameters; all of them where the process died or did not end in time.
        wrong: the output if tests could not be collected ("" if they could).
        seconds: of the run.
    """

    failed: frozenset[str]
    wrong: str = ""
    seconds: float = 0.0


def preload() -> None:
    """Have what most tests import imported once for all processes; to be called before the first run."""
    _CONTEXT.set_forkserver_preload(["torch", "numpy", "safetensors.torch", "yaml", "pytest", "pytest_timeout", "hypothesis"])


def run_tests(
    tests: Sequence[str], module: str = "", source: str = "", *, root: Path = ROOT, limit_s: float | None = None
) -> Outcome:
    """Run tests in a new process, with `source` in the place of `module` if given.

    Args:
        tests: node ids without parameters; of each the rest is skipped after a failure.
        module: dotted name.
        source: of the mutant.
        root: the folder that the package and the tests are in.
        limit_s: seconds after which the process is ended; None: none.
    """
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_child, args=(sender, root, list(tests), module, source), daemon=True)
    start = time.monotonic()
    process.start()
    sender.close()
    outcome = Outcome(frozenset(tests))
    with contextlib.suppress(EOFError):  # it died: every one of its tests has noticed
        if receiver.poll(limit_s):
            outcome = receiver.recv()
            process.join(ENDS_WITHIN_S)
    process.kill()
    process.join()
    return outcome._replace(seconds=time.monotonic() - start)


def _child(sender: Connection, root: Path, tests: list[str], module: str, source: str) -> None:
    os.chdir(root)
    sys.path.insert(0, str(root))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # plugins of installed libraries take seconds, each time
    if module:
        sys.meta_path.insert(0, _Finder(module, source))
    seen, output = _Failures(), io.StringIO()
    arguments = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "pytest_timeout", "--rootdir", str(root)]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = pytest.main([*arguments, *tests], plugins=[seen])
    wrong = bool(seen.errors) or status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    sender.send(Outcome(frozenset(seen.failed), output.getvalue()[-3000:] if wrong else ""))


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module from other source than its file's; writes no bytecode."""

    source = ""

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, source: str) -> None:
        self.module, self.source = module, source

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name == self.module else None
        if spec is None or spec.origin is None:
            return None
        loader = _Loader(name, spec.origin)
        loader.source = self.source
        spec.loader = loader
        return spec


class _Failures:
    """Which tests failed, and which files could not be collected."""

    def __init__(self) -> None:
        self.failed: set[str] = set()
        self.errors: list[str] = []

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if item.nodeid.partition("[")[0] in self.failed:
            pytest.skip("one of its cases has failed")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:  # in its set-up too: what a fixture computes is computed for the test
            self.failed.add(report.nodeid.partition("[")[0])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.append(report.nodeid)
