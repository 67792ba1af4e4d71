"""benchmarks.compressors: it reads back what was written, and its figures are what they say."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from benchmarks import compressors
from benchmarks.compressors import Case, break_even, table


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressors.torch, "set_num_threads", lambda n: None)


def test_a_small_run(few: None) -> None:
    result = CliRunner().invoke(compressors.main, ["--small"], catch_exceptions=False)
    rows = [line for line in result.output.splitlines() if line.startswith(("| bfloat16", "| float", "| int8"))]
    assert len(rows) == 12
    assert rows[0].split("|")[3].strip() == f"{compressors.SMALL_ROWS * 32 * 2:,}"


def test_where_a_compressor_pays() -> None:
    """1,000 bytes read in 1 s, or 800 in 3 s: 200 bytes saved in the 2 s more, at 100 bytes a second."""
    plain = Case(1000, 1.0, 1.0)
    assert break_even(plain, Case(800, 1.0, 3.0)) == 100.0
    assert break_even(plain, Case(800, 1.0, 0.5)) == float("inf")
    assert break_even(plain, Case(1000, 1.0, 3.0)) is None
    text = "\n".join(table({"bfloat16": {None: Case(2**21, 1.0, 0.5), "blosc-lz4": Case(2**20, 2.0, 1.0)}}))
    assert "| bfloat16 | blosc-lz4 | 1,048,576 | 0.500 | 1 | 2 | 2 MiB/s |" in text


def test_other_rows_are_found(few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = compressors.write_store

    def wrong(place, rows, dtype, name=None):
        return right(place, rows if name is None else rows + 1, dtype, name)

    monkeypatch.setattr(compressors, "write_store", wrong)
    result = CliRunner().invoke(compressors.main, ["--small"])
    assert result.exit_code == 1
    assert "are not those that were written" in str(result.exception)
