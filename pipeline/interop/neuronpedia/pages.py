"""What Neuronpedia shows of a feature, from the feature store: what all three forms are written from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.analysis.feature_columns import INACTIVE, NEXT, TOP
from pipeline.errors import DataError

if TYPE_CHECKING:
    from pipeline.analysis.feature_tables import FeatureStore
    from pipeline.interop.neuronpedia.explanations import Explanation

_BAND = re.compile(r"(\d+)-(\d+) %")


@dataclass(frozen=True)
class Shown:
    """A window of text.

    Attributes:
        tokens: their texts.
        values: their activations.
        quantile: smallest and largest activation among the contexts that are shown of its band, and the band's share of all
            contexts in which the feature is active; None: one of the strongest of all.
        peak: index of the strongest token.
        sources: of attention: (index of a token of the window that this activation comes from, its share), largest first.
    """

    tokens: list[str]
    values: list[float]
    quantile: tuple[float, float, float] | None
    peak: int
    sources: list[tuple[int, float]]


@dataclass(frozen=True)
class Page:
    """A feature.

    Attributes:
        source: index of its source: its layer in a dictionary with layers, else 0.
        index: within the source.
        density: share of the tokens on which it is active.
        largest: its largest activation.
        histogram: (middles of the bins, tokens in each), from the first bin with a token to the last; empty: it is dead.
        promoted, suppressed: (texts, logits), strongest first.
        similar: (index within the source, cosine) of the most similar decoder rows of its source.
        shown: its contexts, the strongest first, then band after band.
        explanation: if there is one.
    """

    source: int
    index: int
    density: float
    largest: float
    histogram: tuple[list[float], list[int]]
    promoted: tuple[list[str], list[float]]
    suppressed: tuple[list[str], list[float]]
    similar: list[tuple[int, float]]
    shown: list[Shown]
    explanation: Explanation | None


class Pages:
    """The pages of a feature store, in the order of features.

    Args:
        store: opened, and so checked as a whole: numbers are finite, contexts are those of their features.
        explanations: {feature: explanation}.

    Attributes:
        attention: activations come from other tokens, which are stated.
        outside: sources of activations that lay before the window, and are not in a page; known after a pass.
    """

    def __init__(self, store: FeatureStore, explanations: Mapping[int, Explanation]) -> None:
        self._store, self._explanations = store, explanations
        edges = np.asarray(store.about["histogram_edges"], dtype=np.float64)
        self._middles = (edges[:-1] + edges[1:]) / 2
        self._width = int(store.about["feature_shape"][-1])
        self.attention = self._has_sources()
        self.outside = 0

    def _has_sources(self) -> bool:
        """The first context says so: it has them, or null."""
        for _, contexts in self._store.blocks():
            for rows in contexts.values():
                if rows:
                    return rows[0]["sources"] is not None
        return False

    def __iter__(self) -> Iterator[Page]:
        self.outside = 0
        for rows, contexts in self._store.blocks():
            for row in rows:
                yield self._page(row, contexts[row["feature"]])

    def _page(self, row: Mapping[str, Any], contexts: Sequence[Mapping[str, Any]]) -> Page:
        feature = int(row["feature"])
        source, index = divmod(feature, self._width)
        active = [context for context in contexts if context["band"] != INACTIVE]
        if row["active_tokens"] and not active:
            raise DataError(
                f"{self._store.folder}: feature {row['name']} is active on {row['active_tokens']:,} tokens and has no context; "
                f"{NEXT}"
            )
        near = [(divmod(each["feature"], self._width), each["cosine"]) for each in row["decoder_neighbours"]]
        return Page(
            source=source,
            index=index,
            density=float(row["density"]),
            largest=shortest([row["max_activation"]])[0],
            histogram=self._histogram(row["histogram"]),
            promoted=_logits(row["promoted"]),
            suppressed=_logits(row["suppressed"]),
            similar=[(place[1], shortest([cosine])[0]) for place, cosine in near if place[0] == source],
            shown=self._shown(active),
            explanation=self._explanations.get(feature),
        )

    def _histogram(self, counts: Sequence[int]) -> tuple[list[float], list[int]]:
        there = np.flatnonzero(counts)
        if not len(there):
            return [], []
        some = slice(int(there[0]), int(there[-1]) + 1)
        return self._middles[some].tolist(), list(counts[some])

    def _shown(self, contexts: Sequence[Mapping[str, Any]]) -> list[Shown]:
        """Contexts, those of a band with the band's smallest and largest activation among them."""
        by_band: dict[str, list[Mapping[str, Any]]] = {}
        for context in contexts:
            by_band.setdefault(context["band"], []).append(context)
        found = []
        for band in sorted(by_band, key=lambda name: (name != TOP, -_lowest(name))):
            rows = sorted(by_band[band], key=lambda context: context["place"])
            values = shortest([context["activation"] for context in rows])
            match = _BAND.fullmatch(band)
            quantile = (min(values), max(values), (int(match[2]) - int(match[1])) / 100) if match else None
            found += [self._window(context, quantile) for context in rows]
        return found

    def _window(self, context: Mapping[str, Any], quantile: tuple[float, float, float] | None) -> Shown:
        start = context["position"] - context["peak"]
        stated = [(each["position"] - start, each["value"]) for each in context["sources"] or []]
        inside = [(place, shortest([value])[0]) for place, value in stated if 0 <= place < len(context["tokens"])]
        self.outside += len(stated) - len(inside)
        texts = [readable(text, token) for text, token in zip(context["texts"], context["tokens"], strict=True)]
        return Shown(texts, shortest(context["activations"]), quantile, int(context["peak"]), inside)


def _lowest(band: str) -> int:
    match = _BAND.fullmatch(band)
    return int(match[1]) if match else 0


def _logits(tokens: Sequence[Mapping[str, Any]] | None) -> tuple[list[str], list[float]]:
    found = tokens or []
    return [readable(each["text"], each["token"]) for each in found], shortest([each["logit"] for each in found])


def readable(text: str, token: int) -> str:
    """The text of a token as the site can hold it: not empty, and without U+0000, which stands as the byte <0x00>."""
    return text.replace("\0", "<0x00>") or f"<token {token}>"


def shortest(values: Sequence[float]) -> list[float]:
    """float32 numbers by the fewest digits that mean them: 0.1, not 0.10000000149011612."""
    return np.asarray(values, dtype=np.float32).astype("U32").astype(np.float64).tolist()  # type: ignore[no-any-return]
