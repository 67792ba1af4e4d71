"""Readers of files that others may write, given changed documents for a bounded time: a result, or one line for each fault.

SCOPELINE_FUZZ_SECONDS is how long, of all readers together; `python -m benchmarks.fuzz --minutes 30` goes on longer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from tests.fuzz.hunting import Hunt, Target, find_in, hunt
from tests.fuzz.targets import targets

SECONDS = float(os.environ.get("SCOPELINE_FUZZ_SECONDS", "60"))
NAMES = ("params", "settings", "dictionary", "features", "corpus", "gguf", "chats", "metrics", "suites", "interchange")


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return {target.name: target for target in targets(tmp_path_factory.mktemp("seeds"))}


@pytest.mark.parametrize("name", NAMES)
def test_whole_documents_are_read(every: dict[str, Target], name: str, tmp_path: Path) -> None:
    target = every[name]
    for number, case in enumerate(target.whole):
        place = tmp_path / str(number)
        place.mkdir()
        target.write(place, case)
        target.read(place)


@pytest.mark.parametrize("name", NAMES)
def test_changed_documents(every: dict[str, Target], name: str) -> None:
    found = hunt(every[name], SECONDS / len(NAMES))
    assert found.finds == {}
    assert found.refused > 0


def test_every_reader_has_its_time(every: dict[str, Target]) -> None:
    assert tuple(every) == NAMES


def judged(read: Any) -> tuple[str, str] | None:
    return find_in(Target("x", lambda draw: None, lambda folder, case: None, read, ()), None, Hunt())


def raising(error: BaseException) -> Any:
    def read(folder: Path) -> None:
        raise error

    return read


def test_what_is_a_find(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judged(lambda folder: None) is None
    assert judged(raising(DataError("a: wrong; do this"))) is None
    assert judged(raising(DataError(["a: wrong", "b: wrong"]))) is None
    assert judged(raising(DataError("")))[0] == "message of DataError"
    assert judged(raising(DataError("long" * 5000))) is None  # it is cut
    assert judged(raising(KeyError("x")))[0] == "KeyError at outside"
    assert judged(lambda folder: bytearray(2**33))[0] == "MemoryError at outside"
    monkeypatch.setattr("tests.fuzz.hunting.INPUT_SECONDS", 0.05)

    def endless(folder: Path) -> None:
        while True:
            pass

    assert judged(endless)[0] == "TooSlow at outside"
