"""Rows of a JSON file: one object a line, or one array of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.corpus.encoded import opened, text_of
from pipeline.corpus.folder import suffix_of
from pipeline.corpus.pieces import PIECE_BYTES, Column, Piece, Row
from pipeline.errors import DataError, unknown_name

_MOST_DIGITS = 1000  # of a number that stays an integer: Python reads a few thousand


def json_pieces(path: Path, name: str, column: Column, cut: bool) -> list[Piece]:
    """The pieces of a JSON file.

    Args:
        path: of the file.
        name: of it inside the corpus.
        column: key that holds the text or the messages.
        cut: whether a long file is cut, so that its parts can be read in any order.
    """
    size = max(1, path.stat().st_size)
    _, compression = suffix_of(path.name)
    if _is_array(path):
        return [Piece(str(path), name, 0, size, lambda: _array_rows(path, column))]
    if not cut or compression or size <= PIECE_BYTES:
        return [Piece(str(path), name, 0, size, lambda: _line_rows(path, column, 0, 0, None))]

    def piece(start: int, stop: int, first: int) -> Piece:
        return Piece(str(path), name, first, stop - start, lambda: _line_rows(path, column, start, first, stop))

    return [piece(*bounds) for bounds in _bounds(path)]


def _is_array(path: Path) -> bool:
    with opened(path) as stream:
        start = stream.read(2**16)
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _bounds(path: Path) -> Iterator[tuple[int, int, int]]:
    """(first byte, byte behind the last, number of the first line) of parts of whole lines."""
    start = offset = first = lines = 0
    with opened(path) as stream:
        while block := stream.read(PIECE_BYTES):
            end = offset + block.rfind(b"\n") + 1
            lines += block.count(b"\n")
            if end > offset:
                yield start, end, first
                start, first = end, lines
            offset += len(block)
    if offset > start:
        yield start, offset, first


def _line_rows(path: Path, column: Column, start: int, first: int, stop: int | None) -> Iterator[Row]:
    offset = start
    with opened(path) as stream:
        if start:
            stream.seek(start)
        for number, line in enumerate(stream, first):
            if line.strip():
                place = f"line {number + 1}"
                record = _parsed(text_of(line, path, offset), path, place, "wanted one JSON object a line")
                yield Row(number, place, _value(record, column, path, place))
            offset += len(line)
            if stop is not None and offset >= stop:
                break
    if offset == 0:
        raise DataError(f"{path}: the file is empty; give one JSON object a line")


def _array_rows(path: Path, column: Column) -> Iterator[Row]:
    with opened(path) as stream:
        text = text_of(stream.read(), path, 0)
    records = _parsed(text, path, "the array that it begins", "wanted one array of objects, or one object a line")
    for number, record in enumerate(records):
        place = f"object {number + 1}"
        yield Row(number, place, _value(record, column, path, place))


def _number(digits: str) -> int | float:
    """As a float an integer may have any number of digits; no number is a text, but a chat template may write one."""
    return int(digits) if len(digits) < _MOST_DIGITS else float(digits)


def _parsed(text: str, path: Path, place: str, wanted: str) -> Any:
    try:
        return json.loads(text, parse_int=_number)
    except RecursionError:
        raise DataError(f"{path}: {place} is nested too deep to be read; {wanted}, with the text at its top") from None
    except ValueError as error:
        raise DataError(f"{path}: {place} is not JSON ({error}); {wanted}") from None


def _value(record: Any, column: Column, path: Path, place: str) -> object:
    if not isinstance(record, dict):
        raise DataError(
            f"{path}: {place} holds no JSON object; wanted an object with the key '{column.name}' ({column.parameter})"
        )
    if column.name not in record:
        raise DataError(f"{path}: {place}: {column.parameter}: {unknown_name('field', column.name, record)}")
    return record[column.name]
