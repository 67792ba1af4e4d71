"""What is known of features beside their numbers: explanations of `interpret`, the tokens that a feature is strongest on, and
how strong it gets, from the feature store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.analysis.feature_columns import CONTEXTS, FEATURES, TOP
from pipeline.analysis.feature_tables import FeatureStore
from pipeline.arguments import A_PATH, checked
from pipeline.errors import DataError
from pipeline.files import read_object

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary

SHOWN = 5  # contexts whose strongest tokens are named
LONGEST = 100  # characters of a label
_EXPLANATION = "run `python -m stages.interpret --force`"


@dataclass(frozen=True)
class KnownFeatures:
    """What a feature store and a folder of explanations say.

    Attributes:
        labels: {feature: its explanation, or the tokens on which it is strongest}.
        largest: {feature: its largest activation over the analysed text, in the dictionary's units}.
        folder: of the feature store; "": there is none.
    """

    labels: dict[str, str] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    folder: str = ""


def known_features(
    features: str | Path, interpretations: str | Path | None = None, dictionary: Dictionary | None = None
) -> KnownFeatures:
    """Read both; nothing where neither is there.

    Args:
        features: data/features, of a sweep data/features/<member>.
        interpretations: data/interpretations, likewise; None: none are read.
        dictionary: whose features they should be; None: it is not looked at.

    Raises:
        DataError: one of them is damaged, or the store is of another dictionary.
    """
    labels, largest, folder = {}, {}, Path(features)
    there = (folder / FEATURES).exists() or (folder / CONTEXTS).exists()
    if there:
        store = FeatureStore(folder)
        if dictionary is not None:
            _check_dictionary(store, dictionary)
        rows = store.features(["name", "max_activation"])
        largest = {row["name"]: float(row["max_activation"]) for row in rows if row["max_activation"]}
        labels = _strongest_tokens(store)
    if interpretations is not None and Path(interpretations).is_dir():
        labels |= _explanations(Path(interpretations))
    return KnownFeatures(labels, largest, str(folder) if there else "")


@checked(features=A_PATH, interpretations=A_PATH)
def feature_labels(
    features: str | Path = "data/features", interpretations: str | Path = "data/interpretations"
) -> dict[str, str]:
    """{feature: its explanation, or `on:` and the tokens on which it is strongest}; features that are never active have none.

    Args:
        features: the feature store, of a sweep of one member; relative to the working directory.
        interpretations: what `stages.interpret` has written; it need not be there.

    Raises:
        DataError: there is no feature store, or one of them is damaged.
    """
    if not Path(features).is_dir():
        raise DataError(f"{features}: the feature store is missing; run `dvc repro analyze`, or give the path of one")
    if members := sorted(found.parent.name for found in Path(features).glob(f"*/{FEATURES}")):
        raise DataError(
            f"{features}: holds the feature stores of the members of a sweep; name that of one: "
            f"{', '.join(str(Path(features, name)) for name in members)}"
        )
    return known_features(features, interpretations).labels


def _check_dictionary(store: FeatureStore, dictionary: Dictionary) -> None:
    about = store.about
    stated = (about.get("hook_points_in"), about.get("hook_points_out"), about.get("feature_shape"))
    own = (list(dictionary.hooks_in), list(dictionary.hooks_out), list(dictionary.feature_shape))
    for what, there, wanted in zip(("reads", "writes", "has features of shape"), stated, own, strict=True):
        if there != wanted:
            raise DataError(
                f"{store.folder}: the feature store is of another dictionary: it {what} {there}, wanted {wanted}; run "
                "`dvc repro analyze`, or name the store of this one"
            )


def _strongest_tokens(store: FeatureStore) -> dict[str, str]:
    names = [row["name"] for row in store.features(["name"])]
    found: dict[int, list[str]] = {}
    for _, contexts in store.blocks():
        for feature, rows in contexts.items():
            best = sorted((row for row in rows if row["band"] == TOP), key=lambda row: row["place"])[:SHOWN]
            found[feature] = [str(row["texts"][row["peak"]]) for row in best]
    return {
        names[feature]: _short("on: " + ", ".join(dict.fromkeys(map(repr, texts)))) for feature, texts in found.items() if texts
    }


def _explanations(folder: Path) -> dict[str, str]:
    """Of the files that `interpret` writes; its summary and what other files lie there have no name of a feature."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        record: dict[str, Any] = read_object(path, "an explanation", _EXPLANATION)
        name, text = record.get("name"), record.get("explanation")
        if isinstance(name, str) and isinstance(text, str):
            found[name] = _short(" ".join(text.split()))
    return found


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
