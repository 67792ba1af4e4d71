"""Whether a feature store is what docs/features.md says: columns, types, ranges, and what follows from one another.

Everything is looked at once, a block at a time, in whole columns: 16,384 features with 25 contexts each take about a second.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.feature_columns import (
    CONTEXT_COLUMNS,
    CONTEXTS,
    FEATURE_COLUMNS,
    FEATURES,
    INACTIVE,
    NEXT,
    ROUNDING,
    TOP,
    Column,
    arrow_type,
    fault_of,
)
from pipeline.errors import DataError
from pipeline.files import is_number
from pipeline.foreign import reading

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.analysis.feature_tables import FeatureStore

_SAME_LENGTH = ("texts", "activations")  # as tokens
_IN_ORDER = (("token_start", "token_end"), ("char_start", "char_end"))
# Kept as numbers of a dictionary while they are checked, which is three times as fast.
_TEXTS = {
    FEATURES: ("promoted.list.element.text", "suppressed.list.element.text"),
    CONTEXTS: ("document", "texts.list.element", "sources.list.element.text"),
}
_BAND = re.compile(r"\d{1,3}-\d{1,3} %")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_hook_points(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) in (1, 2) and all(_is_count(n) and n > 0 for n in value)


def _are_edges(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) > 1 and all(map(is_number, value))
    return numbers and value[0] > 0 and all(low < high for low, high in itertools.pairwise(value))


ABOUT: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "dictionary": (_is_text, "a text"),
    "name": (_is_text, "a text"),
    "model": (_is_text, "a text"),
    "split": (_is_text, "a text"),
    "hook_points_in": (_are_hook_points, "names of hook points"),
    "hook_points_out": (_are_hook_points, "names of hook points"),
    "feature_shape": (_is_shape, "[features] or [layers, features]"),
    "tokens": (_is_count, "a count"),
    "coactivation_tokens": (_is_count, "a count"),
    "histogram_edges": (_are_edges, "rising positive numbers"),
}


def check_store(store: FeatureStore) -> None:
    """Look at all of a store.

    Raises:
        DataError: the first fault, by file, row and column.
    """
    about = store.about
    for key, (is_right, wanted) in ABOUT.items():
        if not is_right(about.get(key)):
            raise _fault(store, FEATURES, f"its metadata: {key} should be {wanted}, got {about.get(key)!r}")
    if not _is_count(about.get("excluded_tokens", 0)):
        raise _fault(store, FEATURES, f"its metadata: excluded_tokens should be a count, got {about['excluded_tokens']!r}")
    if not is_number(about.get("logit_softcap", 0)):
        raise _fault(store, FEATURES, f"its metadata: logit_softcap should be a number, got {about['logit_softcap']!r}")
    _check_columns(store, FEATURES, FEATURE_COLUMNS)
    _check_columns(store, CONTEXTS, CONTEXT_COLUMNS)
    total, groups = math.prod(about["feature_shape"]), {name: file.num_row_groups for name, file in store.files.items()}
    if store.n_features != total:
        raise _fault(store, FEATURES, f"{store.n_features:,} rows, wanted one for each of {total:,} features")
    if groups[CONTEXTS] != groups[FEATURES]:
        raise _fault(store, CONTEXTS, f"{groups[CONTEXTS]} blocks of rows, wanted {groups[FEATURES]} as in {FEATURES}")
    written = len(about["hook_points_out"])
    bounds = {
        "last feature": total - 1,
        "tokens": about["tokens"],
        "written hook points": written,
        "pairs of them": written * (written - 1) // 2,
        "bins": len(about["histogram_edges"]) - 1,
    }
    first = first_context = 0
    for features, contexts in store.tables(_TEXTS):
        last = first + features.num_rows
        _check_rows(store, FEATURES, features, FEATURE_COLUMNS, bounds, first)
        for row, wrong in _feature_faults(features, first, about["feature_shape"]):
            raise _fault(store, FEATURES, f"row {first + row}: {wrong}")
        _check_rows(store, CONTEXTS, contexts, CONTEXT_COLUMNS, bounds, first_context)
        for row, wrong in _context_faults(contexts, first, _numbers(features, "max_activation")):
            raise _fault(store, CONTEXTS, f"row {first_context + row}: {wrong}")
        first, first_context = last, first_context + contexts.num_rows


def _fault(store: FeatureStore, name: str, wrong: str) -> DataError:
    return DataError(f"{store.folder / name}: the feature store is damaged: {wrong}; {NEXT}")


def _check_columns(store: FeatureStore, name: str, columns: Mapping[str, Column]) -> None:
    with reading(f"{store.folder / name}: the feature store is damaged", NEXT):
        found = [(field.name, field.type) for field in store.files[name].schema_arrow]
    for key, column in columns.items():
        types = [kind for other, kind in found if other == key]
        if len(types) != 1:
            raise _fault(store, name, f"column {key} is {'there twice' if types else 'missing'}")
        if types[0] != arrow_type(column):
            raise _fault(store, name, f"column {key} holds {types[0]}, wanted {arrow_type(column)}")


def _check_rows(
    store: FeatureStore, name: str, table: pa.Table, columns: Mapping[str, Column], bounds: Mapping[str, int], first: int
) -> None:
    with reading(f"{store.folder / name}: the feature store is damaged (rows from {first} on)", NEXT):
        table.validate(full=True)
    for key, column in columns.items():
        found = fault_of(_whole(table, key), column, bounds)
        if found is not None:
            raise _fault(store, name, f"row {first + found[0]}, column {key}: {found[1]}")


def _whole(table: pa.Table, column: str) -> pa.Array:
    found = table[column]
    return found.chunk(0) if found.num_chunks == 1 else found.combine_chunks()


def _numbers(table: pa.Table, column: str) -> np.ndarray:
    return _whole(table, column).to_numpy(zero_copy_only=False)


def _feature_faults(table: pa.Table, first: int, shape: list[int]) -> Iterator[tuple[int, str]]:
    """(row, fault) of numbers, names and layers that are not those of the features from `first` on."""
    wanted = np.arange(first, first + table.num_rows)
    index = _numbers(table, "feature")
    if (index != wanted).any():
        row = int((index != wanted).argmax())
        yield row, f"feature {index[row]}, wanted {wanted[row]}: features stand in order, each once"
    layers: list[int | None] = [None] * len(wanted)
    names = [str(i) for i in wanted]
    if len(shape) > 1:
        layers = [int(i) // shape[1] for i in wanted]
        names = [f"{int(i) // shape[1]}/{int(i) % shape[1]}" for i in wanted]
    for key, right in (("name", names), ("layer", layers)):
        for row, (got, due) in enumerate(zip(table[key].to_pylist(), right, strict=True)):
            if got != due:
                yield row, f"{key} {got!r}, wanted {due!r}"


def _context_faults(table: pa.Table, first: int, largest: np.ndarray) -> Iterator[tuple[int, str]]:
    """(row, fault) of contexts that are not of the features from `first` on, whose largest activations are `largest` [n], and
    of what does not fit the window's tokens.
    """
    index = _numbers(table, "feature")
    foreign = (index < first) | (index >= first + len(largest))
    if foreign.any():
        row = int(foreign.argmax())
        yield row, f"feature {index[row]}, wanted one of its block, {first} to {first + len(largest) - 1}"
    fallen = np.diff(index) < 0
    if fallen.any():
        row = int(fallen.argmax()) + 1
        yield row, f"feature {index[row]} after {index[row - 1]}: contexts stand in the order of features"
    bands = _whole(table, "band")
    known = [name in (TOP, INACTIVE) or bool(name and _BAND.fullmatch(name)) for name in bands.dictionary.to_pylist()]
    codes = bands.indices.to_numpy(zero_copy_only=False)
    unknown = ~np.array(known, dtype=bool)[codes]
    if unknown.any():
        row = int(unknown.argmax())
        yield row, f"band {bands[row].as_py()!r}, wanted {TOP}, {INACTIVE} or one as 75-100 %"
    places = np.stack([index, codes, _numbers(table, "place")], 1).astype(np.int64)
    _, firsts, counts = np.unique(places, axis=0, return_index=True, return_counts=True)
    if (counts > 1).any():
        row = int(firsts[(counts > 1).argmax()])
        yield row, f"feature {index[row]} has place {places[row, 2]} of band {bands[row].as_py()!r} twice"
    lengths = {key: _whole(table, key).value_lengths().to_numpy(zero_copy_only=False) for key in ("tokens", *_SAME_LENGTH)}
    for key in _SAME_LENGTH:
        other = lengths[key] != lengths["tokens"]
        if other.any():
            row = int(other.argmax())
            yield row, f"{lengths[key][row]} {key} of {lengths['tokens'][row]} tokens"
    peaks = _numbers(table, "peak")
    if (peaks >= lengths["tokens"]).any():
        row = int((peaks >= lengths["tokens"]).argmax())
        yield row, f"peak {peaks[row]} in a window of {lengths['tokens'][row]} tokens"
    yield from _activation_faults(table, bands, largest[index - first])
    for start, end in _IN_ORDER:
        before = _numbers(table, end) < _numbers(table, start)
        if before.any():
            row = int(before.argmax())
            yield row, f"{end} {_numbers(table, end)[row]} before {start} {_numbers(table, start)[row]}"


def _activation_faults(table: pa.Table, bands: pa.Array, largest: np.ndarray) -> Iterator[tuple[int, str]]:
    """(row, fault) of activations that are not the window's at its peak, or not of the feature: `largest` [n] is its largest.

    So contexts under the number of another feature are noticed.
    """
    names, codes = bands.dictionary.to_pylist(), bands.indices.to_numpy(zero_copy_only=False)
    active = np.array([name != INACTIVE for name in names], dtype=bool)[codes]
    best = np.array([name == TOP for name in names], dtype=bool)[codes] & (_numbers(table, "place") == 0)
    values, windows = _numbers(table, "activation"), _whole(table, "activations")
    starts = windows.value_lengths().to_numpy(zero_copy_only=False).cumsum(dtype=np.int64)
    starts = np.concatenate([[0], starts[:-1]]) if len(starts) else starts
    there = windows.flatten().to_numpy(zero_copy_only=False)[starts + _numbers(table, "peak")]
    other = active & ~np.isclose(values, there, rtol=ROUNDING)
    if other.any():
        row = int(other.argmax())
        yield row, f"activation {values[row]:g}, but {there[row]:g} at the window's peak"
    beyond = active & (values > largest + ROUNDING * np.abs(largest)) | best & ~np.isclose(values, largest, rtol=ROUNDING)
    if beyond.any():
        row = int(beyond.argmax())
        yield row, f"activation {values[row]:g} of a feature whose largest is {largest[row]:g}"
