"""Labelled texts: files, data sets and the embedded corpus; which are chosen, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.suites.labelled_texts import LabelledText, chosen_texts, of_data_set, of_demo, of_file
from tests.messages import saying


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def test_lines_of_a_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", {"t": "one", "y": 1}, "", {"t": "two", "y": "x", "more": None}, {"t": "three", "y": True}
    )
    found = list(of_file(path, "t", "y"))
    assert found == [LabelledText("one", "1"), LabelledText("two", "x"), LabelledText("three", "True")]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("{", ("line 2", "damaged")),
        ("[1]", ("line 2", "an object", "a list")),
        ({"text": "a"}, ("line 2", "label")),
        ({"text": "  ", "label": "x"}, ("line 2", "text", "'  '")),
        ({"text": 5, "label": "x"}, ("line 2", "text", 5)),
        ({"text": "a", "label": None}, ("line 2", "label", "None")),
        ({"text": "a", "label": 1.5}, ("line 2", "label", 1.5)),
        ({"text": "a", "label": "x\ny"}, ("line 2", "label")),
        ({"text": "a\ud800", "label": "x"}, ("line 2", "text", "surrogate")),
    ],
)
def test_a_bad_line_is_named(row: object, parts: tuple[object, ...], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "fine", "label": "x"}, row)
    with pytest.raises(DataError, match=saying(*parts)) as refused:
        list(of_file(path))
    assert len(refused.value.faults) == 1
    assert "\n" not in str(refused.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=saying("labelled texts", "missing")):
        list(of_file(tmp_path / "none.jsonl"))


def test_a_data_set_with_named_classes(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"words": datasets.Value("string"), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    rows = datasets.Dataset.from_dict({"words": ["miaow", "woof", "purr"], "kind": [0, 1, 0]}, features=features)
    rows.to_parquet(tmp_path / "train.parquet")
    found = list(of_data_set(str(tmp_path), text_field="words", label_field="kind"))
    assert found == [LabelledText("miaow", "cat"), LabelledText("woof", "dog"), LabelledText("purr", "cat")]
    with pytest.raises(DataError, match=saying("kin", "kind")):
        list(of_data_set(str(tmp_path), text_field="words", label_field="kin"))


def test_the_embedded_corpus_is_labelled_by_its_packages() -> None:
    from functools import partial

    from pipeline.corpus.demo import demo_documents
    from pipeline.corpus.document import held_out

    found = list(of_demo(["click"], 0.05, 0))
    wanted = list(demo_documents(["click"], partial(held_out, fraction=0.05, seed=0)))
    assert [each.text for each in found] == [document.text for document in wanted]
    assert {each.label for each in found} == {"click"}


def test_so_many_of_each_label_whatever_their_order() -> None:
    texts = [LabelledText(f"text {i}", "ab"[i % 2]) for i in range(20)]
    found = chosen_texts(texts, "these", per_label=3, least=2)
    assert [each.label for each in found.texts].count("a") == 3
    assert found == chosen_texts(reversed(texts), "these", per_label=3, least=2)
    assert set(found.texts) <= set(texts)


def test_equal_texts_count_once_and_two_labels_leave_one_out() -> None:
    texts = [
        LabelledText(text, label)
        for text, label in (("a", "x"), (" a\n", "x"), ("b", "x"), ("c", "y"), ("d", "y"), ("e", "x"), ("e", "y"), ("f", "z"))
    ]
    found = chosen_texts(texts, "these", per_label=9, least=2)
    assert sorted((each.text, each.label) for each in found.texts) == [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")]
    assert found.labels == ["x", "y"]
    assert "1 texts have two labels" in found.lines[0]
    assert "'z'" in found.lines[1]


def test_one_label_is_no_task() -> None:
    with pytest.raises(DataError, match=saying("these", "two labels", "'x'", 2)):
        chosen_texts([LabelledText("a", "x"), LabelledText("b", "x"), LabelledText("c", "y")], "these", 9, least=2)
