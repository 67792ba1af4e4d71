"""A feature's examples from the feature store: those shown to the explainer, and those that explanations are scored on."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.analysis.feature_columns import INACTIVE, TOP

OPEN, CLOSE = "<<", ">>"
_OPEN, _CLOSE = "\ue000", "\ue001"  # private use: they stand for the marks until the text's own are taken apart
_LINE_BREAK = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


@dataclass(frozen=True)
class Example:
    """A window of text around one token.

    Attributes:
        band, place, context, position, document_id: as in contexts.parquet.
        characters: (start, end) of the window in its document; -1: not known.
        texts, activations: of the window's tokens; an activation that is not a finite number counts as 0.
        peak: index of the token with the largest activation of the context.
    """

    band: str
    place: int
    context: int
    position: int
    document_id: int
    characters: tuple[int, int]
    texts: tuple[str, ...]
    activations: tuple[float, ...]
    peak: int

    @property
    def largest(self) -> float:
        """The largest activation in the window."""
        return max(self.activations, default=0.0)

    def place_in_text(self) -> dict[str, Any]:
        """What is stored of it: where to find it again."""
        return {
            "band": self.band,
            "place": self.place,
            "context": self.context,
            "position": self.position,
            "document_id": self.document_id,
        }


@dataclass(frozen=True)
class Split:
    """A feature's examples.

    Attributes:
        shown: active, for the explainer.
        active, inactive: for scoring; none shares text with a shown one, nor with another of its kind.
    """

    shown: list[Example]
    active: list[Example]
    inactive: list[Example]


def read_example(row: Mapping[str, Any]) -> Example:
    """An example of a row of contexts.parquet."""
    values = tuple(float(value) if value is not None and math.isfinite(value) else 0.0 for value in row["activations"])
    return Example(
        band=row["band"],
        place=int(row["place"]),
        context=int(row["context"]),
        position=int(row["position"]),
        document_id=int(row["document_id"]),
        characters=(int(row["char_start"]), int(row["char_end"])),
        texts=tuple(text or "" for text in row["texts"]),
        activations=values,
        peak=int(row["peak"]),
    )


def split_examples(rows: Sequence[Mapping[str, Any]], shown: int, active: int, inactive: int) -> Split:
    """Divide a feature's contexts: of the active ones every second goes to the explainer, strongest band and place first.

    Text that is in several bands counts once, in the strongest. Of more than the wanted number, bands are taken from in turn.

    Args:
        rows: of contexts.parquet, of one feature.
        shown: most examples for the explainer.
        active, inactive: most examples for scoring.
    """
    examples = sorted((read_example(row) for row in rows), key=lambda example: example.place)
    bands: dict[str, list[Example]] = {}
    for example in examples:
        if example.band != INACTIVE and example.largest > 0:
            bands.setdefault(example.band, []).append(example)
    order = sorted(bands, key=lambda band: (band != TOP, -max(example.largest for example in bands[band])))
    distinct = _distinct(example for band in order for example in bands[band])
    silent = _distinct(example for example in examples if example.band == INACTIVE)
    return Split(_in_turn(distinct[0::2], shown), _in_turn(distinct[1::2], active), silent[:inactive])


def shares_text(a: Example, b: Example) -> bool:
    """Whether two examples are of one context, of overlapping pieces of one document, or of the same tokens."""
    if a.context == b.context or a.texts == b.texts:
        return True
    known = min(*a.characters, *b.characters) >= 0 and a.document_id == b.document_id
    return known and a.characters[0] < b.characters[1] and b.characters[0] < a.characters[1]


def _distinct(examples: Iterable[Example]) -> list[Example]:
    """The examples without those that share text with an earlier one."""
    kept: list[Example] = []
    for example in examples:
        if not any(shares_text(example, other) for other in kept):
            kept.append(example)
    return kept


def _in_turn(examples: Sequence[Example], limit: int) -> list[Example]:
    """At most `limit` examples, of each band in turn; their order stays."""
    turn: dict[str, int] = {}
    rounds = []
    for index, example in enumerate(examples):
        turn[example.band] = turn.get(example.band, -1) + 1
        rounds.append((turn[example.band], index))
    return [examples[index] for index in sorted(index for _, index in sorted(rounds)[:limit])]


def render(example: Example, marked: Collection[int] = ()) -> str:
    """The text of an example on one line, each marked token between << and >>.

    A `<` or `>` of the text itself that stands beside another, or beside a mark of its kind, is set apart by a blank; line
    breaks are written as backslash n.

    Args:
        example: the example.
        marked: indices of the tokens to mark.
    """
    parts = [text.replace(_OPEN, "").replace(_CLOSE, "") for text in example.texts]
    joined = "".join(f"{_OPEN}{part}{_CLOSE}" if i in marked else part for i, part in enumerate(parts))
    for signs in ("<" + _OPEN, ">" + _CLOSE):
        joined = re.sub(f"[{signs}](?=[{signs}])", r"\g<0> ", joined)
    return _LINE_BREAK.sub(r"\\n", joined).replace(_OPEN, OPEN).replace(_CLOSE, CLOSE)


def strong_tokens(example: Example, max_activation: float, above: float) -> list[int]:
    """Indices of the tokens above a fraction of the feature's largest activation; at least the strongest one.

    Args:
        example: the example.
        max_activation: of the feature, over all tokens.
        above: the fraction, of 0 to 1.
    """
    strongest = max(range(len(example.activations)), key=lambda i: (example.activations[i], i == example.peak))
    return [i for i, value in enumerate(example.activations) if value > above * max_activation or i == strongest]


def active_tokens(example: Example) -> list[int]:
    """Indices of the tokens on which the feature is active."""
    return [i for i, value in enumerate(example.activations) if value > 0]


def inactive_tokens(example: Example) -> list[int]:
    """Indices of the tokens with a text on which the feature is not active."""
    return [i for i, value in enumerate(example.activations) if value <= 0 and example.texts[i].strip()]
