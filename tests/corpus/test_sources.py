"""Local and hub-form data sets, good and bad."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from pipeline.corpus.hub import hub_documents
from pipeline.corpus.local import local_documents
from pipeline.corpus.sources import documents
from pipeline.errors import DataError
from pipeline.params.schema import DatasetParams
from tests.messages import saying


def texts(name: Path | str, field: str = "text", split: str = "train") -> list[str]:
    return [d.text for d in documents(DatasetParams(dataset_name_or_path=str(name), text_field=field, split=split), ())]


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\ntwo\nlines\n<|endoftext|>\n\n")
    paragraph = "p" * 1500
    (tmp_path / "b.txt").write_text(f"{paragraph}\n\n{paragraph}\n\nlast")
    found = list(local_documents(tmp_path, "text"))
    assert [d.text for d in found] == ["one", "two\nlines", f"{paragraph}\n\n{paragraph}", "last"]
    assert [d.key for d in found] == ["a.txt#0", "a.txt#1", "b.txt#0", "b.txt#1"]
    assert all(d.keep_text for d in found)


def test_json_lines_and_parquet_hold_the_same(tmp_path: Path) -> None:
    rows = ["first text", "second text", ""]
    jsonl, parquet = tmp_path / "x.jsonl", tmp_path / "x.parquet"
    jsonl.write_text("".join(json.dumps({"body": row}) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.table({"body": rows, "n": [1, 2, 3]}), parquet)
    assert texts(jsonl, "body") == texts(parquet, "body") == rows[:2]


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_form(tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")  # not that of the user
    data = tmp_path / "set" / "data"
    data.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a b", " ", "c d"]}), data / "train-00000-of-00001.parquet")
    name = str(tmp_path / "set")
    found = list(hub_documents(name, None, "train", "text", streaming))
    assert [d.text for d in found] == ["a b", "c d"]
    assert [d.origin["row"] for d in found] == [0, 2]
    assert not any(d.keep_text for d in found)
    with pytest.raises(DataError, match=saying("dataset.split 'validation':", "'train'")):
        list(hub_documents(name, None, "validation", "text", streaming))
    with pytest.raises(DataError, match=saying("dataset.text_field:", "'txt'", "'text'")):
        list(hub_documents(name, None, "train", "txt", streaming))


def test_saved_on_disk(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"text": ["x y", "z"]})
    made.save_to_disk(tmp_path / "plain")
    assert texts(tmp_path / "plain") == ["x y", "z"]
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "dict")
    assert texts(tmp_path / "dict") == ["x y", "z"]
    with pytest.raises(DataError, match=saying("dataset.split:", "unknown", "'test'", "train")):
        texts(tmp_path / "dict", split="test")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("e.txt", b" \n", ("empty",)),
        ("b.txt", b"text\0more", ("UTF-8", "byte 4", "0x00")),
        ("l.txt", b"caf\xe9", ("UTF-8", "byte 3", "0xe9")),
        ("x.csv", b"a,b", ("dataset.dataset_name_or_path:", "'.csv'", ".txt, .jsonl, .parquet")),
        ("e.jsonl", b"", ("empty",)),
        ("j.jsonl", b'{"text": "a"}\n{oops\n', ("line 2", "JSON")),
        ("f.jsonl", b'{"txt": "a"}\n', ("line 1:", "dataset.text_field:", "'text'", "'txt'")),
        ("t.jsonl", b'{"text": 5}\n', ("line 1:", "dataset.text_field", "'text'", "int")),
        ("p.parquet", b"PAR?", ("Parquet", "4 bytes")),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, parts: tuple[str, ...]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=saying(f"{name}:", *parts)):
        texts(tmp_path / name)


def test_bad_parquet_columns(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"n": [1]}), tmp_path / "n.parquet")
    with pytest.raises(DataError, match=saying("n.parquet:", "dataset.text_field:", "'text'", "n")):
        texts(tmp_path / "n.parquet")
    with pytest.raises(DataError, match=saying("n.parquet:", "dataset.text_field:", "'n'", "int64")):
        texts(tmp_path / "n.parquet", "n")


def test_places_that_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=saying("none.txt:", "dataset.dataset_name_or_path:", "demo")):
        texts(tmp_path / "none.txt")
    with pytest.raises(DataError, match=saying(f"{tmp_path}:", "dataset.dataset_name_or_path:", ".txt, .jsonl, .parquet")):
        texts(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=saying("'no-such/data-set'", "HF_HUB_OFFLINE", "dataset.dataset_name_or_path")):
        texts("no-such/data-set")
