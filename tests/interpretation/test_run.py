"""Scores against planted truth, what is stored, resume, and order of work."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from pipeline.analysis.feature_tables import FeatureStore
from pipeline.errors import DataError
from pipeline.interpretation.chat import ChatError, Message
from pipeline.interpretation.interpret import Settings, choose_features, interpret
from pipeline.interpretation.scoring import score
from tests.interpretation.conftest import (
    PLANTED,
    always_one,
    context_row,
    feature_row,
    inverted,
    kind_of,
    oracle,
    planted_contexts,
    write_store,
)
from tests.messages import saying, says


class Model:
    """A chat model that is a function; it counts."""

    def __init__(self, answer=oracle, name: str = "planted-model") -> None:
        self.answer, self.name, self.asked = answer, name, 0
        self._lock = threading.Lock()

    def complete(self, messages: list[Message]) -> str:
        with self._lock:
            self.asked += 1
        return self.answer(messages)


def one(store: FeatureStore, folder: Path, answer, feature: str = str(PLANTED), **settings) -> dict:
    """What is stored of one feature."""
    interpret(store, Model(answer), choose_features(store, [feature]), folder, Settings(**settings))
    return json.loads((folder / f"{feature.replace('/', '-')}.json").read_text())


@pytest.mark.parametrize(("answer", "rates"), [(oracle, (1.0, 1.0)), (inverted, (0.0, 0.0)), (always_one, (1.0, 0.0))])
def test_scores_of_planted_answers(store: FeatureStore, tmp_path: Path, answer, rates) -> None:
    record = one(store, tmp_path, answer)
    assert record["explanation"] == "the word cat"
    assert record["explanation_parsed"] is True
    for kind, n in (("detection", 12 + 20), ("fuzzing", 20)):
        found = record[kind]
        assert (found["true_positive_rate"], found["true_negative_rate"]) == rates
        assert found["balanced_accuracy"] == sum(rates) / 2
        assert (found["n"], found["unparsed"], found["reason"]) == (n, 0, None)


def test_score_by_hand() -> None:
    found = score([1, 1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, None, None])
    assert found["true_positive_rate"] == 2 / 3
    assert found["true_negative_rate"] == 1 / 2
    assert found["balanced_accuracy"] == (2 / 3 + 1 / 2) / 2
    assert (found["n"], found["n_positive"], found["n_negative"], found["unparsed"]) == (5, 3, 2, 2)
    empty = score([1, 0], [1, None])
    assert empty["balanced_accuracy"] is None
    says(empty["reason"], "negative", 1)


def test_answers_that_cannot_be_parsed(store: FeatureStore, tmp_path: Path) -> None:
    """Every second batch is no list: the others are scored as if they were all."""
    turns = {"detection": 0, "fuzzing": 0}

    def half(messages: list[Message]) -> str:
        kind = kind_of(messages)
        if kind == "explanation":
            return oracle(messages)
        turns[kind] += 1
        return oracle(messages) if turns[kind] % 2 else "I would say [yes, no]"

    record = one(store, tmp_path / "half", half)
    assert record["fuzzing"]["balanced_accuracy"] == 1.0
    assert (record["fuzzing"]["n"], record["fuzzing"]["unparsed"]) == (10, 10)
    assert sum(e["answer"] is None for e in record["detection"]["examples"]) == record["detection"]["unparsed"] > 0
    never = one(store, tmp_path / "never", lambda messages: "EXPLANATION: x")
    assert never["detection"]["balanced_accuracy"] is None
    assert never["detection"]["unparsed"] == 32
    assert never["detection"]["reason"].endswith("with an answer that could be parsed (32 could not)")


def test_what_is_stored(store: FeatureStore, tmp_path: Path) -> None:
    record = one(store, tmp_path, oracle, batch=8)
    assert record["model"] == "planted-model"
    assert record["settings"]["batch"] == 8
    assert record["store"]["dictionary"] == "planted"
    purposes = [exchange["purpose"] for exchange in record["exchanges"]]
    assert purposes == ["explanation"] + ["detection"] * 4 + ["fuzzing"] * 3
    assert all(oracle(exchange["messages"]) == exchange["answer"] for exchange in record["exchanges"])
    rows = {row["context"]: row for row in store.contexts(PLANTED)}
    shown = {e["context"] for e in record["shown"]}
    for kind in ("detection", "fuzzing"):
        for found in record[kind]["examples"]:
            row = rows[found["context"]]
            assert (found["band"], found["position"], found["place"]) == (row["band"], row["position"], row["place"])
            assert found["context"] not in shown
            assert found["answer"] == found["label"]
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_scored_says_why(tmp_path: Path) -> None:
    features = [feature_row(0, active_tokens=0), feature_row(1, max_activation=1.0), feature_row(2)]
    lone = [context_row(1, "top", 0, 1, [" a", " cat"], [0.0, 1.0])]
    active_only = [row for row in planted_contexts(2) if row["band"] != "inactive"]
    store = FeatureStore(write_store(tmp_path / "features", features, lone + active_only))
    dead = one(store, tmp_path, oracle, "0")
    assert dead["explanation"] is None
    assert dead["exchanges"] == []
    says(dead["detection"]["reason"], "no active context")
    single = one(store, tmp_path, oracle, "1")
    assert single["explanation"] == "the word cat"
    assert single["detection"]["reason"] == single["fuzzing"]["reason"] == "no positive example"
    assert len(single["exchanges"]) == 1
    without = one(store, tmp_path, oracle, "2")
    assert without["detection"]["balanced_accuracy"] is None
    assert without["detection"]["reason"] == "no negative example"
    assert without["fuzzing"]["balanced_accuracy"] == 1.0
    silent = one(store, tmp_path / "silent", lambda _: " ", "2")
    assert silent["fuzzing"]["reason"] == "the answer holds no explanation"


def test_resume_asks_nothing_again(store: FeatureStore, tmp_path: Path) -> None:
    rows = choose_features(store, ["7", "6"])
    first = Model()
    summary = interpret(store, first, rows, tmp_path)
    assert first.asked > 0
    again = Model(inverted)
    assert interpret(store, again, rows, tmp_path) == summary
    assert again.asked == 0
    more = Model()
    assert set(interpret(store, more, choose_features(store, ["5"]), tmp_path)["features"]) == {"5", "6", "7"}
    assert more.asked == first.asked / 2
    for changed in ({"force": True}, {"settings": Settings(seed=1)}):
        model = Model()
        interpret(store, model, rows, tmp_path, **changed)
        assert model.asked == first.asked, changed
    other = Model(name="other-model")
    assert set(interpret(store, other, rows[:1], tmp_path)["features"]) == {"7"}
    assert other.asked == first.asked / 2


def test_another_store_and_a_damaged_file_are_done_again(store: FeatureStore, tmp_path: Path) -> None:
    rows = choose_features(store, ["7"])
    interpret(store, Model(), rows, tmp_path / "out")
    (tmp_path / "out" / "7.json").write_text("{", encoding="utf-8")
    model = Model()
    interpret(store, model, rows, tmp_path / "out")
    assert model.asked > 0
    changed = FeatureStore(write_store(tmp_path / "features", [feature_row(i) for i in range(8)], planted_contexts(7)))
    model = Model()
    interpret(changed, model, choose_features(changed, ["7"]), tmp_path / "out")
    assert model.asked > 0


def test_results_do_not_depend_on_concurrency(store: FeatureStore, tmp_path: Path) -> None:
    rows = choose_features(store, n=8)
    for threads in (1, 4):
        interpret(store, Model(), rows, tmp_path / str(threads), concurrency=threads)
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert len(files) == 9
    assert files == sorted(path.name for path in (tmp_path / "4").iterdir())
    assert all((tmp_path / "1" / name).read_bytes() == (tmp_path / "4" / name).read_bytes() for name in files)


def test_a_failure_keeps_what_is_finished(store: FeatureStore, tmp_path: Path) -> None:
    rows = choose_features(store, n=3)
    per_feature = 1 + 7 + 4

    def fails(messages: list[Message]) -> str:
        if model.asked > per_feature + 2:
            raise ChatError("no more")
        return oracle(messages)

    model = Model(fails)
    with pytest.raises(ChatError, match="no more"):
        interpret(store, model, rows, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{rows[0]['name']}.json"]
    rest = Model()
    interpret(store, rest, rows, tmp_path)
    assert rest.asked == 2 * per_feature


def test_summary(store: FeatureStore, tmp_path: Path) -> None:
    interpret(store, Model(inverted), choose_features(store, ["6"]), tmp_path)
    summary = interpret(store, Model(), choose_features(store, ["7", "8", "3"]), tmp_path)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["features"]["7"] == {"explanation": "the word cat", "detection": 1.0, "fuzzing": 1.0}
    assert summary["features"]["3"] == {"explanation": None, "detection": None, "fuzzing": None}
    assert summary["features"]["6"]["detection"] == 0.0
    assert summary["median"] == {"detection": 1.0, "fuzzing": 1.0}


def test_which_features(store: FeatureStore, tmp_path: Path) -> None:
    names = [row["name"] for row in choose_features(store, n=20)]
    assert names == ["7", "6", "8", "5", "9", "2", "1", "0"]
    assert [row["name"] for row in choose_features(store, n=2)] == ["7", "6"]
    assert [row["name"] for row in choose_features(store, ["4", "3", "4"])] == ["4", "3"]
    with pytest.raises(DataError, match=saying("'2/7'", 10, "--feature", 513, "LAYER/FEATURE")):
        choose_features(store, ["2/7"])
    dead = FeatureStore(write_store(tmp_path, [feature_row(0, active_tokens=0)], []))
    with pytest.raises(DataError, match=saying(1, "10%", "--feature")):
        choose_features(dead)


def test_a_feature_of_a_layer(tmp_path: Path) -> None:
    features = [feature_row(i, name=f"{i // 3}/{i % 3}", layer=i // 3) for i in range(9)]
    store = FeatureStore(write_store(tmp_path / "features", features, planted_contexts(7), feature_shape=[3, 3]))
    assert one(store, tmp_path / "out", oracle, "2/1")["name"] == "2/1"
    assert (tmp_path / "out" / "2-1.json").exists()
