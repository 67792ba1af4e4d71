"""The columns of contexts.parquet for a block of features, made whole columns at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.collection import BANDS, Collection
from pipeline.analysis.feature_columns import INACTIVE, TOP
from pipeline.analysis.feature_tables import band_name, contexts_schema
from pipeline.analysis.tracing import lists

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from pipeline.analysis.tracing import AnalysedContexts
    from pipeline.params.sections.analysis import AnalysisParams


def context_columns(
    some: slice, collection: Collection, contexts: AnalysedContexts, analysis: AnalysisParams
) -> Mapping[str, Sequence[Any]]:
    """For each feature its top contexts, those of the quantile bands from the highest, and inactive ones."""
    parts = [part.ordered(some) for part in (collection.top, collection.drawn, collection.inactive)]
    slots = _Slots(parts)
    filled = [(part["rank"] > -np.inf).sum(1).tolist() for part in parts]  # the first ones
    sampled = parts[1]["value"].tolist()
    rows: list[tuple[int, str, int, int]] = []  # row of the block, band, place, slot among those of all parts
    for row, (n_top, n_drawn, n_inactive) in enumerate(zip(*filled, strict=True)):
        rows += [(row, TOP, place, place) for place in range(n_top)]
        places = [0] * BANDS
        for band, slot in banded(sampled[row][:n_drawn], analysis.band_contexts):
            rows.append((row, band_name(band, BANDS), places[band], slots.first[1] + slot))
            places[band] += 1
        rows += [(row, INACTIVE, place, slots.first[2] + place) for place in range(n_inactive)]
    of_rows, bands, in_band, of_slots = zip(*rows, strict=True) if rows else ((), (), (), ())
    at = (np.array(of_rows, dtype=np.int64), np.array(of_slots, dtype=np.int64))
    context, position = slots("context", at), slots("position", at)
    windows = contexts.windows(context, position, analysis.window_before, analysis.window_after)
    values = slots.padded("window", at, windows.kept.shape[1], 0.0)
    return {
        "feature": (at[0] + some.start).astype(np.int32),
        "band": bands,
        "place": in_band,
        "activation": slots("value", at),
        "context": context,
        "position": position,
        **windows.columns,
        "activations": lists(windows.kept.sum(1), values[windows.kept]),
        "sources": _sources(slots, at, context, contexts),
    }


def banded(values: Sequence[float], each: int) -> list[tuple[int, int]]:
    """(band, place) of values spread over the quantile bands of a feature's sample, highest band and largest value first.

    The values are sorted and cut into BANDS equal parts; `each` of a part are taken, evenly spread.
    """
    ordered = sorted(range(len(values)), key=values.__getitem__)
    found = []
    for band in reversed(range(BANDS)):
        part = ordered[band * len(ordered) // BANDS : (band + 1) * len(ordered) // BANDS]
        n = min(each, len(part))
        found += [(band, part[i * len(part) // n]) for i in reversed(range(n))]
    return found


class _Slots:
    """The slots of several parts side by side.

    Args:
        parts: as of ContextSlots.ordered.

    Attributes:
        first: number of the first slot of each part.
    """

    def __init__(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        self._parts = [{name: tensor.numpy() for name, tensor in part.items()} for part in parts]
        widths = [part["rank"].shape[1] for part in self._parts]
        self.first = [sum(widths[:i]) for i in range(len(widths))]

    def __call__(self, name: str, at: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """What stands in the slots (row, number), [n]."""
        return np.concatenate([part[name] for part in self._parts], axis=1)[at]

    def width(self, name: str) -> int:
        """Length of the longest vectors of a name."""
        return max(part[name].shape[2] for part in self._parts)

    def padded(self, name: str, at: tuple[np.ndarray, np.ndarray], width: int, value: float) -> np.ndarray:
        """The same of what is a vector, [n, width]; a part whose vectors are shorter has `value` everywhere."""
        found = np.full((len(at[0]), width), value, dtype=self._parts[0][name].dtype)
        for part, first in zip(self._parts, self.first, strict=True):
            own = (at[1] >= first) & (at[1] < first + part[name].shape[1])
            if part[name].shape[2] == width:
                found[own] = part[name][at[0][own], at[1][own] - first]
        return found


def _sources(slots: _Slots, at: tuple[np.ndarray, np.ndarray], context: np.ndarray, contexts: AnalysedContexts) -> pa.Array:
    """The column `sources`: the tokens that an activation comes from, in the order of the slot."""
    import pyarrow as pa

    kind = contexts_schema().field("sources").type
    width = slots.width("source_position")
    position = slots.padded("source_position", at, width, -1)
    there = position >= 0
    value = slots.padded("source_value", at, width, 0.0)[there]
    texts = contexts.texts_at(context.repeat(there.sum(1)), position[there])
    records = pa.StructArray.from_arrays([pa.array(position[there]), texts, pa.array(value)], fields=list(kind.value_type))
    return lists(there.sum(1), records)
