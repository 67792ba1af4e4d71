"""Documents of local files: .txt, JSON and Parquet (text_form, json_form and parquet_form say what a document is)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from pipeline.corpus.document import Document
from pipeline.corpus.folder import TextFiles, text_files
from pipeline.corpus.json_form import json_pieces
from pipeline.corpus.parquet_form import parquet_pieces
from pipeline.corpus.pieces import Column, Piece, Skipped, read_rows
from pipeline.corpus.text_form import text_pieces
from pipeline.errors import DataError

HeldOutFiles = Callable[[Mapping[str, int]], frozenset[str] | None]


def documents_of_files(
    files: TextFiles, column: Column, seed: int | None, skipped: Skipped, held_out: HeldOutFiles | None = None
) -> Iterator[Document]:
    """The documents of local files.

    Args:
        files: which.
        column: key (JSON) or column (Parquet) with the text or the messages.
        seed: of the order; None: as the files have it, sorted by name.
        skipped: counts the rows that hold null, and has the files whose pieces are split.
        held_out: says of the files' bytes by name which files are held out whole; pieces of plain text files then have the
            side of theirs. Where it says None, or there is none, each piece has its own.

    Raises:
        DataError: messages are asked of plain text; missing, empty, binary or malformed files, by name and place.
    """
    if files.form == "text" and column.chat is not None:
        raise DataError(
            f"{files.path}: {column.parameter} '{column.name}': .txt files hold no messages; give .jsonl or .parquet"
        )
    forms: dict[str, Callable[[Path, str], list[Piece]]] = {
        "text": text_pieces,
        "json": partial(json_pieces, column=column, cut=seed is not None),
        "parquet": partial(parquet_pieces, column=column),
    }
    pieces: list[Piece] = [piece for name in files.names for piece in forms[files.form](files.base / name, name)]
    held = None
    if files.form == "text" and held_out is not None:
        held = held_out({piece.name: piece.size for piece in pieces})
    for piece, row, content in read_rows(pieces, column, seed, skipped, held or frozenset()):
        side = piece.name in held if row.cut and held is not None else None
        if row.cut and row.number and held is None:
            skipped.cut_files.add(piece.name)
        origin: dict[str, str | int] = {"file": piece.name, "row": row.number}
        own = piece.name if row.cut else ""
        yield Document.of(content, f"{piece.name}#{row.number}", origin, held=side, piece_of=own)


def local_documents(path: Path, text_field: str) -> Iterator[Document]:
    """The documents of a local file, or of the split train of a folder, in the order of the files."""
    yield from documents_of_files(text_files(path, "train", None), Column(text_field), None, Skipped())
