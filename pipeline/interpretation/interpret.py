"""Interpret features: explain each, score the explanation, and keep every prompt and answer.

A folder holds <feature>.json for each feature (a "/" of its name becomes "-") and summary.json. A feature is finished when its
file is there, with the fingerprint of the model's name, the settings, the feature store and the feature.
"""

from __future__ import annotations

import json
import statistics
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.analysis.feature_tables import FeatureStore
from pipeline.errors import DataError, Interrupted
from pipeline.files import fingerprint, write_json
from pipeline.interpretation.chat import ChatModel, Message
from pipeline.interpretation.examples import split_examples
from pipeline.interpretation.prompts import PROMPTS, explanation_request, parse_explanation
from pipeline.interpretation.scoring import detect, detection_questions, fuzz, fuzzing_questions, not_scored
from pipeline.interpretation.workers import each_result
from pipeline.progress import Progress

COLUMNS = ("feature", "name", "active_tokens", "density", "max_activation", "energy")
MAX_DENSITY = 0.1
SUMMARY = "summary.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Settings:
    """What decides the requests, beside the feature store and the model.

    Attributes:
        shown: most examples that the explainer sees.
        active, inactive: most examples that an explanation is scored on.
        batch: texts of one scoring request.
        mark_above: tokens above this fraction of the feature's largest activation are marked for the explainer.
        max_tokens: most tokens of an answer.
        seed: of the order of the examples and of the tokens marked wrongly.
    """

    shown: int = 20
    active: int = 20
    inactive: int = 20
    batch: int = 5
    mark_above: float = 0.3
    max_tokens: int = 1024
    seed: int = 0


class Conversation:
    """The chat model, and what was said.

    Args:
        model: that answers.
        stop: once it is set, nothing more is asked.
    """

    def __init__(self, model: ChatModel, stop: threading.Event) -> None:
        self._model, self._stop = model, stop
        self.exchanges: list[dict[str, Any]] = []

    def ask(self, purpose: str, messages: list[Message]) -> str:
        """The answer.

        Raises:
            ChatError: there is none.
            Interrupted: another feature has failed, or the user has stopped the run.
        """
        if self._stop.is_set():
            raise Interrupted("interrupted; run the same command again to go on")
        answer = self._model.complete(messages)
        self.exchanges.append({"purpose": purpose, "messages": messages, "answer": answer})
        return answer


def choose_features(store: FeatureStore, names: Sequence[str] = (), n: int = 20) -> list[dict[str, Any]]:
    """Rows of the named features, or of the n of the largest energy among those active on less than a tenth of the tokens.

    Args:
        store: the feature store.
        names: such as `513`, or `2/513` for feature 513 of layer 2.
        n: without names, how many.

    Raises:
        DataError: no feature of a name, or none that is active.
    """
    rows = store.features(list(COLUMNS))
    if names:
        known = {row["name"]: row for row in rows}
        for name in names:
            if name not in known:
                raise DataError(
                    f"{store.folder}: no feature '{name}' among {len(rows):,}; give --feature as 513, or LAYER/FEATURE"
                )
        return [known[name] for name in dict.fromkeys(names)]
    alive = [row for row in rows if row["active_tokens"] > 0 and row["density"] < MAX_DENSITY]
    if not alive:
        raise DataError(
            f"{store.folder}: none of the {len(rows):,} features is active on more than 0 and less than {MAX_DENSITY:.0%} of "
            "the tokens; name those to interpret with --feature"
        )
    return sorted(alive, key=lambda row: (-(row["energy"] or 0.0), row["feature"]))[:n]


def interpret_feature(
    row: Mapping[str, Any], contexts: Sequence[Mapping[str, Any]], settings: Settings, conversation: Conversation
) -> dict[str, Any]:
    """Explain one feature and score the explanation.

    Args:
        row: of features.parquet.
        contexts: its rows of contexts.parquet.
        settings: see :class:`Settings`.
        conversation: asks the chat model.

    Returns:
        explanation (None without one), explanation_parsed (whether it stood where it was asked for), detection and fuzzing (see
        pipeline.interpretation.scoring.score, with the examples), shown, exchanges (every request and answer).

    Raises:
        ChatError: the chat model does not answer.
    """
    split = split_examples(contexts, settings.shown, settings.active, settings.inactive)
    explanation, parsed, reason = None, False, "the feature has no active context to explain it from"
    if split.shown:
        request = explanation_request(split.shown, row["max_activation"] or 0.0, settings.mark_above)
        explanation, parsed = parse_explanation(conversation.ask("explanation", request))
        reason = "the answer holds no explanation"
    detection, fuzzing = not_scored(reason), not_scored(reason)
    if explanation is not None:
        index, seed = int(row["feature"]), settings.seed
        detection = detect(explanation, detection_questions(split, seed, index), settings.batch, conversation.ask)
        fuzzing = fuzz(explanation, fuzzing_questions(split, seed, index), settings.batch, conversation.ask)
    return {
        "explanation": explanation,
        "explanation_parsed": parsed,
        "detection": detection,
        "fuzzing": fuzzing,
        "shown": [example.place_in_text() for example in split.shown],
        "exchanges": conversation.exchanges,
    }


def interpret(
    store: FeatureStore,
    model: ChatModel,
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    settings: Settings | None = None,
    *,
    force: bool = False,
    concurrency: int = 1,
) -> dict[str, Any]:
    """Interpret features that are not finished, and write the summary of all finished ones of this run.

    Args:
        store: the feature store.
        model: explains and judges.
        rows: of the features, see :func:`choose_features`.
        folder: for the results.
        settings: see :class:`Settings`.
        force: do finished features again too.
        concurrency: features at a time; results do not depend on it.

    Returns:
        what summary.json holds: features {name: {explanation, detection, fuzzing}} (balanced accuracies), median {detection,
        fuzzing} over the features that have one, model, run (fingerprint of all but the feature).

    Raises:
        ChatError: the chat model does not answer; what is finished stays. So it does at a KeyboardInterrupt, which waits for no
            open request.
    """
    settings = settings or Settings()
    about = {
        "format_version": FORMAT_VERSION,
        "model": model.name,
        "settings": asdict(settings),
        "prompts": PROMPTS,
        "store": {**store.about, "sha256": store.digest()},
    }
    run = fingerprint(about)
    waiting = [row for row in rows if force or not _finished(_file(folder, row), run, row)]
    progress = Progress("interpret", len(rows), unit="features", done=len(rows) - len(waiting))
    stop = threading.Event()

    def one(row: Mapping[str, Any]) -> dict[str, Any]:
        return interpret_feature(row, store.contexts(int(row["feature"])), settings, Conversation(model, stop))

    for row, result in each_result(one, waiting, concurrency, stop):
        identity = {"feature": row["feature"], "name": row["name"], "run": run, "fingerprint": _fingerprint(run, row)}
        write_json(_file(folder, row), {**about, **identity, **result})
        progress.update(1)
    progress.close()
    summary = summarize(folder, run, model.name)
    write_json(folder / SUMMARY, summary)
    return summary


def summarize(folder: Path, run: str, model: str) -> dict[str, Any]:
    """The summary of all features in a folder that one run has interpreted; see :func:`interpret`."""
    found = [record for path in folder.glob("*.json") if (record := _record(path)).get("run") == run and "feature" in record]
    features = {
        record["name"]: {
            "explanation": record["explanation"],
            "detection": record["detection"]["balanced_accuracy"],
            "fuzzing": record["fuzzing"]["balanced_accuracy"],
        }
        for record in sorted(found, key=lambda record: record["feature"])
    }
    median = {}
    for kind in ("detection", "fuzzing"):
        values = [feature[kind] for feature in features.values() if feature[kind] is not None]
        median[kind] = statistics.median(values) if values else None
    return {"features": features, "median": median, "model": model, "run": run}


def _file(folder: Path, row: Mapping[str, Any]) -> Path:
    return folder / f"{str(row['name']).replace('/', '-')}.json"


def _fingerprint(run: str, row: Mapping[str, Any]) -> str:
    return fingerprint({"run": run, "feature": row["feature"], "name": row["name"]})


def _finished(path: Path, run: str, row: Mapping[str, Any]) -> bool:
    return _record(path).get("fingerprint") == _fingerprint(run, row)


def _record(path: Path) -> dict[str, Any]:
    """What a file holds; nothing if it is missing or damaged, for then it is written anew."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
