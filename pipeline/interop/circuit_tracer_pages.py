"""circuit-tracer's pages of features, which its frontend shows beside a graph, from feature stores (docs/features.md).

    features/index.json.gz      {layer: {filename, offsets [F + 1]}}
    features/layer_{l}.bin      for each feature at its offset 4 bytes, the length (little endian), and as much gzipped JSON:
        transcoder_id, index    (l + f)(l + f + 1) / 2 + f, by which the graph's nodes name it
        examples_quantiles      [{quantile_name, examples [{tokens, tokens_acts_list, train_token_ind, is_repeated_datapoint}]}]
        top_logits, bottom_logits   texts of the tokens that it promotes and suppresses
        act_min, act_max        ends of the histogram and of the colours
        histogram, quantile_values, activation_frequency

A store keeps activations in logarithmic bins (a factor of 2^(1/4)); the linear bins and the percentiles here are what they give
if each bin's activations are spread evenly in it. Windows of inactive contexts have no place here.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.feature_columns import INACTIVE, TOP
from pipeline.errors import DataError

if TYPE_CHECKING:
    from pipeline.analysis.feature_tables import FeatureStore
    from pipeline.interop.plain import PlainDictionary

FOLDER, INDEX = "features", "index.json.gz"
BINS = 50
_SHOWN = str.maketrans({"\n": "\u23ce", "\t": "\u2192", "\r": "\u21b5"})
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def paired(layer: int, feature: int) -> int:
    """One number for both (Cantor's)."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def write_pages(path: Path, dictionaries: Sequence[PlainDictionary], stores: Sequence[FeatureStore]) -> None:
    """Write features/ into an export.

    Args:
        path: of the export.
        dictionaries: as written; one cross-layer transcoder, or a transcoder of each layer, in their order.
        stores: of each.

    Raises:
        DataError: a store is of another dictionary, or its activations are in other units.
    """
    folder = path / FOLDER
    folder.mkdir()
    index: dict[str, dict[str, Any]] = {}
    for plain, store in zip(dictionaries, stores, strict=True):
        _check_same(plain, store)
        n = plain.d_sae
        first = int(plain.hooks_in[0].split(".")[1])
        writer: _Layer | None = None
        for rows, contexts in store.blocks():
            for row in rows:
                layer, feature = first + row["feature"] // n, row["feature"] % n
                if writer is None or writer.layer != layer:
                    if writer is not None:
                        index[str(writer.layer)] = writer.close()
                    writer = _Layer(folder, layer)
                writer.add(page(row, contexts[row["feature"]], store.about, layer, feature))
        if writer is not None:
            index[str(writer.layer)] = writer.close()
    (folder / INDEX).write_bytes(gzip.compress(json.dumps(index).encode(), mtime=0))


class _Layer:
    """The file of a layer."""

    def __init__(self, folder: Path, layer: int) -> None:
        self.layer, self.name, self.offsets = layer, f"layer_{layer}.bin", [0]
        self._file = (folder / self.name).open("wb")

    def add(self, page: Mapping[str, Any]) -> None:
        data = gzip.compress(json.dumps(page, ensure_ascii=False, allow_nan=False).encode(), mtime=0)
        self.offsets.append(self.offsets[-1] + self._file.write(len(data).to_bytes(4, "little") + data))

    def close(self) -> dict[str, Any]:
        """What the index says of it."""
        self._file.close()
        return {"filename": self.name, "offsets": self.offsets}


def page(
    row: Mapping[str, Any],
    contexts: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
    layer: int,
    feature: int,
) -> dict[str, Any]:
    """What is shown of one feature.

    Args:
        row, contexts: of the store.
        about: the store's metadata.
        layer, feature: its place in the set.
    """
    bands: dict[str, list[dict[str, Any]]] = {}
    for shown in sorted(contexts, key=lambda context: (context["band"] != TOP, context["place"])):
        if shown["band"] != INACTIVE:
            example = {
                "tokens": [shown_text(text) for text in shown["texts"]],
                "tokens_acts_list": list(shown["activations"]),
                "train_token_ind": shown["peak"],
                "is_repeated_datapoint": False,
            }
            bands.setdefault(shown["band"], []).append(example)
    names = sorted(bands, key=lambda name: (name != TOP, -int(name.split("-")[0]) if name != TOP else 0))
    highest = float(row["max_activation"])
    counts = np.asarray(row["histogram"], dtype=np.float64)
    below = _Cumulative(counts, np.asarray(about["histogram_edges"], dtype=np.float64), highest)
    return {
        "transcoder_id": f"{about['name']}-{layer}",
        "index": paired(layer, feature),
        "examples_quantiles": [
            {"quantile_name": "Top activations" if name == TOP else name, "examples": bands[name]} for name in names
        ],
        "top_logits": [shown_text(each["text"]) for each in row["promoted"] or ()],
        "bottom_logits": [shown_text(each["text"]) for each in row["suppressed"] or ()],
        "act_min": 0.0,
        "act_max": highest,
        "quantile_values": below.quantiles(100),
        "histogram": below.histogram(BINS),
        "activation_frequency": float(row["density"]),
    }


def shown_text(text: str) -> str:
    r"""A token's text as that tool shows it: line ends as signs, bytes that are no character by themselves as \xe2."""
    return _BYTE.sub(lambda match: "\\x" + match[1].lower(), text).translate(_SHOWN)


class _Cumulative:
    """How many activations lie below a value, each bin's spread evenly, none above the highest.

    Args:
        counts: [n] of the bins; the first and the last also hold what lies beyond.
        edges: [n + 1].
        highest: the largest activation; 0: there is none.
    """

    def __init__(self, counts: np.ndarray, edges: np.ndarray, highest: float) -> None:
        ends = np.clip(edges, 0.0, highest)
        ends[0], ends[-1] = 0.0, highest
        self._ends, self._below, self._highest = ends, np.concatenate([[0.0], np.cumsum(counts)]), highest

    def histogram(self, bins: int) -> list[float]:
        """Counts in bins of one width, from 0 to the highest; zeros of a feature that is never active."""
        if not self._highest:
            return [0.0] * bins
        return np.diff(np.interp(np.linspace(0.0, self._highest, bins + 1), self._ends, self._below)).tolist()

    def quantiles(self, n: int) -> list[float]:
        """The values below which 1 / n, 2 / n, ..., all of the activations lie; none of a feature that is never active."""
        total = self._below[-1]
        if not self._highest or not total:
            return []
        return np.interp(np.arange(1, n + 1) * total / n, self._below, self._ends).tolist()


def _check_same(plain: PlainDictionary, store: FeatureStore) -> None:
    """Refuse the features of another dictionary, as far as a store says whose it is."""
    about, wrong = store.about, []
    for key, wanted in (("hook_points_in", list(plain.hooks_in)), ("hook_points_out", list(plain.hooks_out))):
        if about.get(key) != wanted:
            wrong.append(f"{key} {about.get(key)}, wanted {wanted}")
    n = plain.d_sae * (len(plain.hooks_in) if plain.kind == "clt" else 1)
    if store.n_features != n:
        wrong.append(f"{store.n_features:,} features, wanted {n:,}")
    if wrong:
        what = f"{store.folder}: the feature store is of another dictionary"
        raise DataError(f"{what}: {'; '.join(wrong)}; run analyze for this one")
    if not about.get("folded", True):
        raise DataError(f"{store.folder}: its activations are of a dictionary before the fold (fold.mode keep), in other units")
