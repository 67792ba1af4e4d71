"""Ctrl-C while requests are open: the command ends at once, in one line, and finished features are kept."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.interpretation.conftest import Stub, oracle
from tests.messages import says
from tests.project import REPOSITORY

OF_A_FEATURE = 12  # requests


def started(command: list[str]) -> subprocess.Popen[str]:
    """The command, running. Where the tests run in the background they ignore Ctrl-C, and what they start would ignore it too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("concurrency", [1, 2])
def test_ctrl_c_ends_it_while_requests_are_open(planted: Path, tmp_path: Path, stub: Stub, concurrency: int) -> None:
    release, hanging = threading.Event(), threading.Event()

    def answer(messages: list[dict[str, str]]) -> str:
        if len(stub.requests) > 2 * concurrency * OF_A_FEATURE:
            hanging.set()
            release.wait(250)
        return oracle(messages)

    stub.answer = answer
    command = [sys.executable, "-m", "stages.interpret", "--features-dir", str(planted), "--out", str(tmp_path / "out")]
    command += ["--endpoint", stub.url, "--model", "m", "--n", "8", "--concurrency", str(concurrency)]
    process = started(command)
    try:
        assert hanging.wait(200)
        for _ in range(600):  # until a finished feature is written
            if any((tmp_path / "out").glob("*.json")):
                break
            time.sleep(0.1)
        before = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=150)
        took = time.monotonic() - before
    finally:
        process.kill()
        release.set()
    assert process.returncode == 130, err
    (line,) = [line for line in err.splitlines() if not line.startswith("interpret ")]
    assert line.startswith("error: interrupted")
    says(line, "again")
    assert out == ""
    assert took < 100  # on a busy machine; a request hangs for longer
    kept = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert kept
    assert all(name.removesuffix(".json").isdecimal() for name in kept)
