"""Documents of a .txt file: what stands between lines that hold only <|endoftext|>.

Where there are none, it is cut at blank lines, paragraphs being gathered to at least 2,000 characters: pieces of one text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.corpus.encoded import opened, text_of
from pipeline.corpus.pieces import Piece, Row
from pipeline.errors import DataError

SEPARATOR = "<|endoftext|>"
GATHERED_CHARACTERS = 2000


def text_pieces(path: Path, name: str) -> list[Piece]:
    """The one piece of a text file."""
    return [Piece(str(path), name, 0, max(1, path.stat().st_size), lambda: _rows(path))]


def _rows(path: Path) -> Iterator[Row]:
    empty, separated = True, False
    for line in _lines(path):
        empty = empty and not line.strip()
        separated = separated or line.strip() == SEPARATOR
    if empty:
        raise DataError(f"{path}: the text file is empty; give a file with text")
    cut = _between_separators(_lines(path)) if separated else _gathered(_lines(path))
    for number, text in enumerate(cut):
        yield Row(number, f"document {number + 1}", text, cut=not separated)


def _lines(path: Path) -> Iterator[str]:
    offset = 0
    with opened(path) as stream:
        for line in stream:
            yield text_of(line, path, offset).replace("\r\n", "\n")
            offset += len(line)


def _between_separators(lines: Iterator[str]) -> Iterator[str]:
    part: list[str] = []
    for line in lines:
        if line.strip() != SEPARATOR:
            part.append(line)
        elif "".join(part).strip():
            yield "".join(part).strip("\n")
            part = []
        else:
            part = []
    if "".join(part).strip():
        yield "".join(part).strip("\n")


def _gathered(lines: Iterator[str]) -> Iterator[str]:
    gathered: list[str] = []
    size = 0
    for paragraph in _paragraphs(lines):
        if paragraph.strip():
            gathered.append(paragraph)
            size += len(paragraph)
        if size >= GATHERED_CHARACTERS:
            yield "\n\n".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield "\n\n".join(gathered)


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    part: list[str] = []
    for line in lines:
        if line == "\n" and part and part[-1].endswith("\n"):
            yield "".join(part)[:-1]
            part = []
        else:
            part.append(line)
    yield "".join(part)
