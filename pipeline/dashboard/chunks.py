"""The dashboard's data: plain values as compressed JSON, in text that a script tag can hold.

table: a column for each thing that is sorted, filtered or searched, over all features shown; tokens are all that a page lists.
chunk: the whole pages of CHUNK neighbouring features. Both keep each text once, in `t`, with the token's id in `ids` (null: no
token's) and give its place; activations have 3 significant digits, which is what the page shows.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from pipeline.analysis.feature_columns import INACTIVE, TOP

CHUNK = 32
_INSIDE, _OPEN = re.compile(r"\w"), re.compile(r"\w\Z")  # a token that goes on with a word; one that a word may go on from
COLUMNS = (
    "feature", "name", "density", "max", "mean", "energy", "kurtosis", "norm", "variety", "fires", "words", "promotes",
    "suppresses", "explanation",
)  # fmt: skip


def packed(value: Any) -> str:
    """gzip of JSON in base64; the same value gives the same text."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode("ascii")


def short(value: float | None, digits: int = 4) -> float | None:
    """Rounded to significant digits, whole where that is exact."""
    if value is None:
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


class _Strings:
    """Texts by number, each kept once; texts of different tokens are different ones."""

    def __init__(self) -> None:
        self._place: dict[tuple[str, int | None], int] = {}

    def __call__(self, text: str, token: int | None = None) -> int:
        return self._place.setdefault((text, token), len(self._place))

    def of(self, texts: Iterable[str], tokens: Iterable[int]) -> list[int]:
        """The numbers of several."""
        place = self._place
        return [place.setdefault(pair, len(place)) for pair in zip(texts, tokens, strict=True)]

    def packed(self) -> dict[str, Any]:
        """As in the file."""
        return {"t": [text for text, _ in self._place], "ids": [token for _, token in self._place]}


def chunk(rows: Sequence[Mapping[str, Any]], contexts: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The pages of some features: rows of features.parquet and, by feature, of contexts.parquet."""
    strings = _Strings()
    return {
        "features": {row["feature"]: _page(row, contexts.get(row["feature"], ()), strings) for row in rows},
        **strings.packed(),
    }


def part(whole: Mapping[str, Any], features: Container[int]) -> dict[str, Any]:
    """Of a chunk the pages of some of its features, as `chunk` makes it of these."""
    place: dict[int, int] = {}

    def number(old: int) -> int:
        return place.setdefault(old, len(place))

    pages = {feature: _renumbered(page, number) for feature, page in whole["features"].items() if feature in features}
    return {"features": pages, **{key: [whole[key][old] for old in place] for key in ("t", "ids")}}


def _renumbered(page: Mapping[str, Any], number: Callable[[int], int]) -> dict[str, Any]:
    """A page whose texts have other numbers; they are given in the order in which `_page` gives them."""
    bands: dict[str, list[Any]] = {}
    for band, contexts in page["bands"].items():
        bands[band] = []
        for *before, tokens, activations, document, start, end, context, position, sources in contexts:
            numbers = list(map(number, tokens))
            place = [number(document), start, end, context, position]
            bands[band].append([*before, numbers, activations, *place, [[at, number(t), v] for at, t, v in sources]])
    named = {key: [[number(text), logit] for text, logit in page[key]] for key in ("promoted", "suppressed")}
    return {**page, "bands": bands, **named}


def _page(row: Mapping[str, Any], contexts: Sequence[Mapping[str, Any]], strings: _Strings) -> dict[str, Any]:
    bands: dict[str, list[Any]] = {}
    for context in contexts:
        if context["band"] != INACTIVE:
            bands.setdefault(context["band"], []).append(_context(context, strings))
    counts = row["histogram"] or ()
    filled = [i for i, count in enumerate(counts) if count]
    low, high = (filled[0], filled[-1] + 1) if filled else (0, 0)
    return {
        "bands": bands,
        "histogram": [low, *counts[low:high]],
        "promoted": [[strings(token["text"], token["token"]), short(token["logit"], 3)] for token in row["promoted"] or ()],
        "suppressed": [[strings(token["text"], token["token"]), short(token["logit"], 3)] for token in row["suppressed"] or ()],
        "decoder": [[near["feature"], short(near["cosine"], 3)] for near in row["decoder_neighbours"] or ()],
        "coactive": [[near["feature"], short(near["jaccard"], 3)] for near in row["coactive_neighbours"] or ()],
        "norms": [short(norm, 3) for norm in row["written_norms"] or ()],
        "threshold": short(row["threshold"]),
        "active": row["active_tokens"],
    }


def _context(context: Mapping[str, Any], strings: _Strings) -> list[Any]:
    """[activation, peak, tokens, activations, document, start, end, context, position, sources]."""
    return [
        short(context["activation"]),
        context["peak"],
        strings.of(context["texts"], context["tokens"]),
        [short(value, 3) if value else 0 for value in context["activations"]],
        strings(context["document"]),
        context["char_start"],
        context["char_end"],
        context["context"],
        context["position"],
        [[source["position"], strings(source["text"]), short(source["value"], 3)] for source in context["sources"] or ()],
    ]


def fires_on(contexts: Iterable[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """(text, id) of the strongest tokens of the top contexts, each once, the commonest first."""
    peaks = [
        (context["texts"][i], context["tokens"][i]) for context in contexts if context["band"] == TOP for i in [context["peak"]]
    ]
    return [token for token, _ in Counter(peaks).most_common()]


def words_of(contexts: Iterable[Mapping[str, Any]]) -> list[str]:
    """The words of several tokens that the strongest tokens of the contexts are parts of, each once, the commonest first."""
    found: Counter[str] = Counter()
    for context in contexts:
        parts = _word_at_peak(context)
        if len(parts) > 1 and context["band"] != INACTIVE:
            found["".join(parts).strip()] += 1
    return [word for word, _ in found.most_common()]


def variety(contexts: Iterable[Mapping[str, Any]]) -> float | None:
    """The share that are different (type-token ratio) of the words at the peaks of the strongest contexts, or of the tokens
    there if that is less: a piece that many words have in common is one token. Upper and lower case are alike.

    1: another word in each context; None: there are fewer than two contexts to compare.
    """
    strongest = [context for context in contexts if context["band"] == TOP]
    if len(strongest) < 2:
        return None
    words = {"".join(_word_at_peak(context)).strip().casefold() for context in strongest}
    tokens = {context["texts"][context["peak"]].strip().casefold() for context in strongest}
    return min(len(words), len(tokens)) / len(strongest)


def _word_at_peak(context: Mapping[str, Any]) -> Sequence[str]:
    """The tokens of the word that the strongest token of a context is a part of; that token alone where it is whole or none."""
    texts, start = context["texts"], context["peak"]
    end = start + 1
    while start > 0 and _INSIDE.match(texts[start]) and _OPEN.search(texts[start - 1]):
        start -= 1
    while end < len(texts) and _INSIDE.match(texts[end]) and _OPEN.search(texts[end - 1]):
        end += 1
    return texts[start:end]  # type: ignore[no-any-return]


class Table:
    """The columns of the table, filled feature by feature in ascending order."""

    def __init__(self, explanations: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.explanations = explanations or {}
        self._strings = _Strings()
        self.columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}

    def add(self, row: Mapping[str, Any], contexts: Sequence[Mapping[str, Any]]) -> None:
        """Add a feature: its row of features.parquet and its contexts."""
        explained = self.explanations.get(row["name"], {})
        values = {
            "feature": row["feature"],
            "name": row["name"],
            "density": short(row["density"]),
            "max": short(row["max_activation"]),
            "mean": short(row["mean_activation"]),
            "energy": short(row["energy"]),
            "kurtosis": short(row["logit_kurtosis"], 3),
            "norm": short(row["decoder_norm"], 3),
            "variety": short(variety(contexts), 3),
            "fires": [self._strings(*token) for token in fires_on(contexts)],
            "words": [self._strings(word) for word in words_of(contexts)],
            "promotes": [self._strings(token["text"], token["token"]) for token in row["promoted"] or ()],
            "suppresses": [self._strings(token["text"], token["token"]) for token in row["suppressed"] or ()],
            "explanation": [explained.get(key) for key in ("explanation", "detection", "fuzzing")] if explained else None,
        }
        for name, value in values.items():
            self.columns[name].append(value)

    def packed(self) -> dict[str, Any]:
        """The table's values; names only where they are not the numbers, words and explanations only where there are some."""
        columns = {**self.columns, **self._strings.packed()}
        if all(name == str(number) for name, number in zip(columns["name"], columns["feature"], strict=True)):
            del columns["name"]
        for key in ("words", "explanation"):
            if not any(columns[key]):
                del columns[key]
        return columns
