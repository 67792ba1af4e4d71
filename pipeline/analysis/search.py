"""Features by a word: those whose strongest contexts have it where they fire, or whose explanation does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from pipeline.analysis.feature_columns import TOP
from pipeline.analysis.feature_tables import FeatureStore
from pipeline.analysis.labels import known_features
from pipeline.errors import ParamsError

SHOWN = 20  # features of an answer


@dataclass(frozen=True)
class Hit:
    """A feature that was found.

    Attributes:
        name: of the feature.
        n, of: its strongest contexts in which the word has the strongest token, or a part of it; all of them.
        label: what is known of it (pipeline/analysis/labels.py).
    """

    name: str
    n: int
    of: int
    label: str


def features_of_word(word: str, features: Path, interpretations: Path | None = None) -> list[Hit]:
    """The features of a word, upper and lower case alike: first the largest share of contexts, then the lowest number.

    Args:
        word: what is looked for; it may be of several tokens, or a part of one.
        features: the feature store.
        interpretations: folder of explanations, which need not be there.

    Raises:
        ParamsError: the word is empty.
        DataError: there is no feature store, or one of them is damaged.
    """
    wanted = word.strip().casefold()
    if not wanted:
        raise ParamsError("--search: the word is empty; give one, or a part of one")
    store = FeatureStore(features)
    labels = known_features(features, interpretations).labels
    found = []
    for rows, contexts in store.blocks():
        for row in rows:
            strongest = [context for context in contexts[row["feature"]] if context["band"] == TOP]
            n = sum(_fires_on(wanted, context["texts"], context["peak"]) for context in strongest)
            label = labels.get(row["name"], "")
            if n or wanted in label.casefold():
                found.append(Hit(row["name"], n, len(strongest), label))
    return sorted(found, key=lambda hit: -hit.n / max(hit.of, 1))


def _fires_on(wanted: str, texts: list[str], peak: int) -> bool:
    """Whether an occurrence of the word shares characters with the token at `peak`."""
    parts = [text.casefold() for text in texts]
    start = len("".join(parts[:peak]))
    whole, first = "".join(parts), start - len(wanted) + 1
    return whole.find(wanted, max(first, 0), start + len(parts[peak]) + len(wanted) - 1) >= 0


def print_search(word: str, features: Path, interpretations: Path) -> None:
    """Print a line for each feature of a word.

    Raises:
        as :func:`features_of_word`.
    """
    hits = features_of_word(word, features, interpretations)
    for hit in hits[:SHOWN]:
        click.echo(f"{hit.name:>6}  {hit.n:>2} of {hit.of} strongest contexts  {hit.label}".rstrip())
    if not hits:
        click.echo(f"no feature in {features} fires on '{word}' in its strongest contexts, nor is explained by it")
    elif len(hits) > SHOWN:
        click.echo(f"... and {len(hits) - SHOWN:,} more")
