"""What the columns of the feature store may hold: types, ranges and where null may be, declared once and checked from there."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

FEATURES, CONTEXTS = "features.parquet", "contexts.parquet"
TOP, INACTIVE = "top", "inactive"
NEXT = "run `dvc repro analyze`"
FINITE = sys.float_info.max
ROUNDING = 1e-3  # by which a cosine may be beyond 1
BAND = "band"  # a text of few values, kept as their numbers


@dataclass(frozen=True)
class Values:
    """Numbers or texts.

    Attributes:
        kind: `int32`, `float64`, `string`, ..., or `band`.
        low, high: smallest and largest number; or the name of a bound that the store states. Numbers are always finite.
        optional: null may stand there.
    """

    kind: str
    low: float | str = -FINITE
    high: float | str = FINITE
    optional: bool = False


@dataclass(frozen=True)
class Record:
    """A group of values, none of them null: {name: values}."""

    fields: Mapping[str, Values]


@dataclass(frozen=True)
class Listed:
    """A list in each row.

    Attributes:
        of: its elements.
        length: name of a bound: how many there must be; "": any number.
        optional: null may stand in its place.
    """

    of: Values | Record
    length: str = ""
    optional: bool = False


Column = Values | Listed
INDEX = Values("int32", 0, "last feature")
COUNT = Values("int32", 0)
PLACE = Values("int32", -1)  # a character; -1: none
TEXT = Values("string")
NUMBER = Values("float32")
LENGTH = Values("float32", 0)

_TOKENS = Listed(Record({"token": COUNT, "text": TEXT, "logit": NUMBER}), optional=True)
_COSINE = Values("float32", -1 - ROUNDING, 1 + ROUNDING)

FEATURE_COLUMNS: Mapping[str, Column] = {
    "feature": INDEX,
    "name": TEXT,
    "layer": Values("int16", 0, optional=True),
    "active_tokens": Values("int64", 0, "tokens"),
    "density": Values("float64", 0, 1),
    "max_activation": NUMBER,
    "mean_activation": Values("float64"),
    "energy": Values("float64", 0, 1 + ROUNDING),
    "decoder_norm": LENGTH,
    "written_norms": Listed(LENGTH, "written hook points"),
    "written_cosines": Listed(Values("float32", -1 - ROUNDING, 1 + ROUNDING, optional=True), "pairs of them", optional=True),
    "threshold": Values("float32", optional=True),
    "histogram": Listed(Values("int64", 0), "bins"),
    "logit_kurtosis": Values("float32", optional=True),
    "promoted": _TOKENS,
    "suppressed": _TOKENS,
    "decoder_neighbours": Listed(Record({"feature": INDEX, "cosine": _COSINE})),
    "coactive_neighbours": Listed(Record({"feature": INDEX, "jaccard": Values("float32", 0, 1 + ROUNDING)})),
}
CONTEXT_COLUMNS: Mapping[str, Column] = {
    "feature": INDEX,
    "band": Values(BAND),
    "place": Values("int16", 0),
    "activation": NUMBER,
    "context": COUNT,
    "position": COUNT,
    "document_id": COUNT,
    "document": TEXT,
    "token_start": PLACE,
    "token_end": PLACE,
    "char_start": PLACE,
    "char_end": PLACE,
    "peak": Values("int16", 0),
    "tokens": Listed(COUNT),
    "texts": Listed(TEXT),
    "activations": Listed(NUMBER),
    "sources": Listed(Record({"position": COUNT, "text": TEXT, "value": NUMBER}), optional=True),
}


def arrow_type(column: Column | Record) -> pa.DataType:
    """The type that a column is stored in."""
    import pyarrow as pa

    if isinstance(column, Listed):
        return pa.list_(arrow_type(column.of))
    if isinstance(column, Record):
        return pa.struct([(name, arrow_type(values)) for name, values in column.fields.items()])
    return pa.dictionary(pa.int8(), pa.string()) if column.kind == BAND else getattr(pa, column.kind)()


def fault_of(array: pa.Array, column: Column, bounds: Mapping[str, int]) -> tuple[int, str] | None:
    """(row, what is wrong there) of the first value that the column may not hold; None: there is none.

    Args:
        array: of the column's type, its texts perhaps kept as numbers of a dictionary; they are UTF-8.
        column: its declaration.
        bounds: what the declarations name.
    """
    return next(_faults(array, column, bounds), None)


def _faults(array: Any, column: Column | Record, bounds: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    """(element, fault) of an array; of what is in a list, the list's."""
    if array.null_count:
        null = array.is_null().to_numpy(zero_copy_only=False)
        if not getattr(column, "optional", False):
            yield int(null.argmax()), "null"
        there = (~null).nonzero()[0]
        yield from ((int(there[at]), wrong) for at, wrong in _faults(array.drop_null(), column, bounds))
    elif isinstance(column, Record):
        for name, values in column.fields.items():
            yield from ((at, f"{name} {wrong}") for at, wrong in _faults(array.field(name), values, bounds))
    elif isinstance(column, Listed):
        lengths = array.value_lengths().to_numpy(zero_copy_only=False)
        if column.length and (lengths != bounds[column.length]).any():
            at = int((lengths != bounds[column.length]).argmax())
            yield at, f"{lengths[at]} values, wanted {bounds[column.length]} ({column.length})"
        for at, wrong in _faults(array.flatten(), column.of, bounds):
            yield int(lengths.cumsum().searchsorted(at, side="right")), wrong
    elif column.kind not in ("string", BAND) and len(array):
        low, high = (bounds[limit] if isinstance(limit, str) else limit for limit in (column.low, column.high))
        values = array.to_numpy(zero_copy_only=False)
        if not (float(values.min()) >= low and float(values.max()) <= high):  # so, what is not a number is noticed
            at = int(((values.astype(np.float64) >= low) & (values.astype(np.float64) <= high)).argmin())
            yield at, f"{values[at]}, wanted {_range(low, high)}"


def _range(low: float, high: float) -> str:
    """`0 to 1`, `0 or more`, `a finite number`."""
    if high == FINITE:
        return "a finite number" if low == -FINITE else f"a finite number of {low:g} or more"
    return f"{math.ceil(low):,} to {math.floor(high):,}"
