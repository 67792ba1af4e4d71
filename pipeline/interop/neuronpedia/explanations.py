"""Explanations of features, as `interpret` has left them: a JSON file for each, and summary.json, which names the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import DataError
from pipeline.files import read_object

SUMMARY = "summary.json"
_AGAIN = "run `python -m stages.interpret` again, or move the folder away to export without explanations"


class Explanation(NamedTuple):
    """An explanation.

    Attributes:
        text: what it says.
        notes: who explained, and how well it was scored.
    """

    text: str
    notes: str


def read_explanations(folder: Path, digest: str) -> dict[int, Explanation]:
    """{feature: its explanation} of the run that the summary is of; none where nothing was interpreted.

    Args:
        folder: data/interpretations.
        digest: of the feature store that is exported.

    Raises:
        DataError: a file is damaged, or explains the features of another store.
    """
    if not (folder / SUMMARY).exists():
        return {}
    run = read_object(folder / SUMMARY, "the summary of the interpretations", _AGAIN).get("run")
    found = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == SUMMARY:
            continue
        record = read_object(path, "an interpretation", _AGAIN)
        if record.get("run") != run or record.get("explanation") is None:
            continue
        store, text, feature = record.get("store"), record["explanation"], record.get("feature")
        if not isinstance(store, dict) or store.get("sha256") != digest:
            raise DataError(f"{path}: explains a feature of another feature store; {_AGAIN}")
        if not isinstance(text, str) or not isinstance(feature, int):
            raise DataError(f"{path}: an interpretation should have a feature and an explanation; {_AGAIN}")
        if text.strip():
            found[feature] = Explanation(text.strip(), _notes(record))
    return found


def _notes(record: dict[str, Any]) -> str:
    said = [f"explained by {record.get('model')}"]
    for kind in ("detection", "fuzzing"):
        score = record.get(kind)
        value = score.get("balanced_accuracy") if isinstance(score, dict) else None
        if isinstance(value, (int, float)):
            said.append(f"{kind} {value:.3f}")
    return ", ".join(said)
