"""Documents of a data set of the Hugging Face hub, downloaded or streamed, or of one saved by `datasets` on disk."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.corpus.document import Document
from pipeline.corpus.folder import holds_text
from pipeline.corpus.pieces import Column, Piece, Row, Skipped, read_rows
from pipeline.errors import DataError, unknown_name
from pipeline.files import near, relative_to
from pipeline.foreign import full_disk, reading, shortened, told

_PIECE_ROWS = 1024
_SAVED = ("state.json", "dataset_info.json", "dataset_dict.json")


def hub_rows(name: str, config_name: str | None, revision: str | None, split: str, streaming: bool) -> Any:
    """The rows of a hub data set (or of a directory in the hub's form).

    Raises:
        DataError: data set, revision, configuration or split do not exist.
    """
    import datasets

    datasets.disable_progress_bars()
    where = f"data set '{name}'" + (f" ({config_name})" if config_name else "") + (f" at '{revision}'" if revision else "")
    with reading(f"{where}: its files are damaged", "download them anew"):
        try:
            return datasets.load_dataset(name, config_name, split=split, streaming=streaming, revision=revision)
        except datasets.exceptions.DatasetGenerationError as error:
            raise (error.__cause__ or error) from None
        except ValueError as error:
            # An unknown split or configuration; the library's message lists those that exist.
            raise DataError(f"{where}: dataset.split '{split}': {shortened(error)}") from None
        except RuntimeError as error:  # a loading script, which the library never runs
            advice = "give a data set of data files (Parquet, JSON, text), or convert this one"
            raise DataError(f"{where}: {shortened(error)}; {advice}") from None
        except OSError as error:
            if full_disk(error) is not None:
                raise
            offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") not in (None, "", "0") else ""
            raise DataError(
                f"{where} was not found on the hub or in its cache{offline}: {told(error)}; there is no file or directory "
                f"of this name in {relative_to()} either{near(name, holds_text)}; dataset.dataset_name_or_path takes 'demo', a "
                "hub id, or a local file or directory (.txt, .jsonl, .parquet)"
            ) from None


def saved_on_disk(path: Path) -> bool:
    """Whether `path` is a directory written by `Dataset.save_to_disk`, whole or not."""
    return any((path / name).exists() for name in _SAVED)


def saved_rows(path: Path, split: str) -> Any:
    """The rows of a data set saved by `datasets`.

    Raises:
        DataError: no such split, or the directory is damaged.
    """
    import datasets

    with reading(f"{path}: the data set saved here is damaged", "write it anew with save_to_disk"):
        loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise DataError(f"{path}: dataset.split: {unknown_name('split', split, loaded)}")
        return loaded[split]
    return loaded


def documents_of_rows(
    rows: Any, name: str, split: str, column: Column, seed: int | None, skipped: Skipped
) -> Iterator[Document]:
    """The documents of a data set's rows; the token store keeps row and field instead of the text.

    Args:
        rows: of `datasets`.
        name, split: where they come from.
        column: the one that holds the text or the messages.
        seed: of the order; None, or rows that are streamed: as they come.
        skipped: counts the rows that hold null.

    Raises:
        DataError: not one such field, it holds no text, or a row cannot be read.
    """
    source = f"data set '{name}'"
    columns: list[str] | None = getattr(rows, "column_names", None)
    if columns is not None and column.name not in columns:
        raise DataError(f"{source}: {column.parameter}: {unknown_name('column', column.name, columns)}")
    pieces = [Piece(source, name, 0, 1, lambda: _streamed(rows, column, source))]
    if hasattr(rows, "__len__"):
        own = rows.select_columns([column.name])
        pieces = [_piece(own, column.name, source, name, first) for first in range(0, len(rows), _PIECE_ROWS)]
    else:
        seed = None
    for _, row, content in read_rows(pieces, column, seed, skipped):
        origin: dict[str, str | int] = {"dataset": name, "split": split, "row": row.number, "field": column.name}
        yield Document.of(content, f"{name}/{split}#{row.number}", origin, keep_text=False)


def _piece(rows: Any, field: str, source: str, name: str, first: int) -> Piece:
    stop = min(first + _PIECE_ROWS, len(rows))

    def read() -> Iterator[Row]:
        values: Iterable[object]
        try:
            with reading(f"{source}: rows from {first} on are damaged"):
                values = rows[first:stop][field]
        except DataError:  # one by one, to name the row
            values = (_one(rows, number, field, source) for number in range(first, stop))
        return (Row(number, f"row {number}", value) for number, value in enumerate(values, first))

    return Piece(source, name, first, stop - first, read)


def _one(rows: Any, number: int, field: str, source: str) -> object:
    with reading(f"{source}: row {number} is damaged", "write the data set anew"):
        return rows[number][field]


def _streamed(rows: Any, column: Column, source: str) -> Iterator[Row]:
    advice = "run again, or set dataset.streaming=false to download the data set whole"
    with reading(f"{source}: row 0 cannot be read", advice):
        each = iter(rows)
    for number in itertools.count():
        with reading(f"{source}: row {number} cannot be read", advice):
            row = next(each, None)
        if row is None:
            return
        if column.name not in row:
            raise DataError(f"{source}: {column.parameter}: {unknown_name('column', column.name, row)}")
        yield Row(number, f"row {number}", row[column.name])
