"""Rows of a Parquet file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.corpus.pieces import Column, Piece, Row
from pipeline.errors import DataError, unknown_name
from pipeline.foreign import reading

_BATCH_ROWS = 1024
_ANEW = "write the file anew"


def parquet_pieces(path: Path, name: str, column: Column) -> list[Piece]:
    """A piece for each row group of a Parquet file.

    Raises:
        DataError: not a Parquet file, or not one column of this name that holds what is wanted.
    """
    import pyarrow.parquet

    with reading(f"{path}: not a Parquet file", _ANEW), pyarrow.parquet.ParquetFile(path) as file:
        columns, schema = file.schema_arrow.names, file.schema_arrow
        groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
        sizes = [(group.num_rows, group.total_byte_size) for group in groups]
    field, parameter = column.name, column.parameter
    if field not in columns:
        raise DataError(f"{path}: {parameter}: {unknown_name('column', field, columns)}")
    if columns.count(field) > 1:
        raise DataError(f"{path}: {parameter}: {columns.count(field)} columns are named '{field}'; rename all but one")
    kind = schema.field(field).type
    if not (_is_text(kind) if column.chat is None else _is_list(kind)):
        wanted = "text" if column.chat is None else "lists of messages {role, content}"
        raise DataError(f"{path}: {parameter}: column '{field}' holds {kind}, wanted {wanted}")
    firsts = list(itertools.accumulate((n_rows for n_rows, _ in sizes), initial=0))

    def piece(group: int) -> Piece:
        rows = lambda: _rows(path, field, group, firsts[group])  # noqa: E731
        return Piece(str(path), name, firsts[group], max(1, sizes[group][1]), rows)

    return [piece(group) for group in range(len(sizes))]


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    plain = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(plain) or types.is_large_string(plain) or types.is_string_view(plain)


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_null(kind)


def _rows(path: Path, field: str, group: int, first: int) -> Iterator[Row]:
    import pyarrow.parquet

    with reading(f"{path}: not a Parquet file", _ANEW):
        file = pyarrow.parquet.ParquetFile(path)
    with file:
        batches = file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=[field])
        number = first
        while True:
            with reading(f"{path}: row {number} or one after it is damaged", _ANEW):
                batch = next(batches, None)
            if batch is None:
                return
            for scalar in batch.column(0):
                place = f"row {number}"
                yield Row(number, place, _value(scalar, path, place))
                number += 1


def _value(scalar: Any, path: Path, place: str) -> object:
    with reading(f"{path}: {place} is damaged", _ANEW):
        try:
            return scalar.as_py()
        except UnicodeDecodeError as error:
            at, byte = error.start, error.object[error.start]
            raise DataError(f"{path}: {place}: the text is not UTF-8 (byte {at} is {byte:#04x}); write it as UTF-8") from None
