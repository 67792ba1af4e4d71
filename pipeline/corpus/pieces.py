"""Rows of a corpus in pieces that can be read in any order, so that what is read first is a fair sample of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pipeline.corpus.chat import ChatTemplate, Content, check_unicode, kind_of
from pipeline.corpus.file_split import spread
from pipeline.errors import DataError
from pipeline.seeding import numpy_generator

if TYPE_CHECKING:
    from numpy.random import Generator

PIECE_BYTES = 2**21
OPEN_PIECES = 16
HELD_CHARACTERS = 2**21


@dataclass(frozen=True)
class Column:
    """What is read of a row.

    Attributes:
        name: of the column or key.
        chat: makes a text of the messages that it holds; None: it holds text.
        assistant_only: of messages only the assistant's tokens count.
    """

    name: str
    chat: ChatTemplate | None = None
    assistant_only: bool = False

    @property
    def parameter(self) -> str:
        """The parameter that names it."""
        return "dataset.text_field" if self.chat is None else "dataset.messages_field"

    def content(self, value: object, place: str) -> Content:
        """What a row that is not null holds.

        Raises:
            DataError: something else than is wanted, or no Unicode text.
        """
        if self.chat is not None:
            return self.chat.content(value, f"{place}: {self.parameter} '{self.name}'", self.assistant_only)
        if not isinstance(value, str):
            raise DataError(f"{place}: {self.parameter} '{self.name}' holds {kind_of(value)}, wanted text (or null)")
        check_unicode(value, place)
        return Content(value)


class Row(NamedTuple):
    """One row as a file has it.

    Attributes:
        number: from 0, what the document is named by.
        place: `line 3`, for a message.
        value: text, or null, or what should have been text.
        cut: whether it is a piece of a text that is the whole file.
    """

    number: int
    place: str
    value: object
    cut: bool = False


@dataclass(frozen=True)
class Piece:
    """A part of a corpus.

    Attributes:
        source: the file or data set, for a message.
        name: what the keys of its documents begin with: the file inside its corpus.
        first: number of the first row.
        size: how much there is of it; only the sizes of one corpus are compared.
        rows: reads it.
    """

    source: str
    name: str
    first: int
    size: int
    rows: Callable[[], Iterator[Row]]


@dataclass
class Skipped:
    """What is said of the rows once they have been read.

    Attributes:
        null_rows: rows that gave no document, as they hold null where the text should be.
        cut_files: files of which several pieces were split, each by its own text.
    """

    null_rows: int = 0
    cut_files: set[str] = field(default_factory=set)


def read_rows(
    pieces: Sequence[Piece], column: Column, seed: int | None, skipped: Skipped, held: frozenset[str] = frozenset()
) -> Iterator[tuple[Piece, Row, Content]]:
    """(piece, row, what it holds) of every row that holds any text; in order without a seed.

    Args:
        pieces: of the corpus.
        column: what is read of a row.
        seed: of the order; None: as the pieces are.
        skipped: counts the rows that hold null.
        held: names of pieces that are held out whole; with a seed they come at even distances.

    Raises:
        DataError: a row holds something else than is wanted, or what is no Unicode text.
    """
    read = ((piece, row) for piece in pieces for row in piece.rows()) if seed is None else _mixed(pieces, seed, held)
    for piece, row in read:
        if row.value is None:
            skipped.null_rows += 1
            continue
        content = column.content(row.value, f"{piece.source}: {row.place}")
        if content.text.strip():
            yield piece, row, content


def _mixed(pieces: Sequence[Piece], seed: int, held: frozenset[str]) -> Iterator[tuple[Piece, Row]]:
    """Every row once: pieces in a drawn order, OPEN_PIECES of them read by turns, each as often as its size asks."""
    draw = numpy_generator(seed, "corpus", "order of documents")
    drawn = [pieces[number] for number in draw.permutation(len(pieces))]
    waiting = iter(spread(drawn, held) if held else drawn)
    opened: list[tuple[Piece, Iterator[Row]]] = []

    def open_next() -> None:
        for piece in waiting:
            opened.append((piece, _held(piece.rows(), numpy_generator(seed, "corpus", piece.name, piece.first))))
            return

    for _ in range(OPEN_PIECES):
        open_next()
    while opened:
        total = sum(piece.size for piece, _ in opened)
        # One draw for the rows of a round: as many turns as there are open pieces.
        turns = draw.choice(len(opened), size=len(opened), p=[piece.size / total for piece, _ in opened])
        ended = set()
        for turn in turns:
            row = next(opened[turn][1], None)
            if row is None:
                ended.add(int(turn))
            else:
                yield opened[turn][0], row
        for turn in sorted(ended, reverse=True):
            del opened[turn]
            open_next()


def _held(rows: Iterable[Row], draw: Generator) -> Iterator[Row]:
    """The rows, shuffled among as many neighbours as hold HELD_CHARACTERS."""
    held: list[Row] = []
    characters = 0
    for row in rows:
        held.append(row)
        characters += _characters(row.value)
        if characters >= HELD_CHARACTERS:
            yield from (held[at] for at in draw.permutation(len(held)))
            held, characters = [], 0
    yield from (held[at] for at in draw.permutation(len(held)))


def _characters(value: object) -> int:
    """How much a row holds: of messages, what is in them."""
    if isinstance(value, str):
        return len(value)
    messages = value if isinstance(value, list) else []
    return 1 + sum(
        len(text) for message in messages if isinstance(message, dict) for text in message.values() if isinstance(text, str)
    )
