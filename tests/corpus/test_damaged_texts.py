"""Texts that cannot be read: each ends with the file, the line or row, what is wrong and what to do."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from pipeline.corpus.hub import documents_of_rows, hub_rows
from pipeline.corpus.pieces import Column, Skipped
from pipeline.errors import DataError
from tests.corpus.test_sources import corpus, texts

FILES = [
    ("e.txt", b" \n", "the text file is empty"),
    ("b.txt", b"text\0more", r"not a UTF-8 text file \(byte 4 is 0x00\)"),
    ("l.txt", b"two\ncaf\xe9", r"not a UTF-8 text file \(byte 7 is 0xe9\)"),
    ("u.txt", "text".encode("utf-16"), "byte order mark says UTF-16; write the file as UTF-8"),
    ("u.jsonl", '{"text": "a"}'.encode("utf-16"), "byte order mark says UTF-16"),
    ("x.csv", b"a,b", r"unknown form '\.csv'; wanted \.txt"),
    ("x.parquet.gz", b"", r"unknown form '\.parquet\.gz'"),
    ("g.jsonl.gz", b"no gzip", r"g\.jsonl\.gz: the compressed file is damaged \(BadGzipFile: Not a gzipped file"),
    ("h.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:-12], r"h\.jsonl\.gz: the compressed file is damaged"),
    ("e.jsonl", b"", "the file is empty"),
    ("j.jsonl", b'{"text": "a"}\n{oops\n', "line 2 is not JSON .*wanted one JSON object a line"),
    ("i.json", b'{\n"text": "a"}', "line 1 is not JSON .*one JSON object a line"),
    ("k.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"not a UTF-8 text file \(byte 24 is 0xff\)"),
    ("f.jsonl", b'{"txt": "a"}\n', r"line 1: dataset\.text_field: unknown field 'text'; did you mean 'txt'"),
    ("t.jsonl", b'{"text": 5}\n', r"line 1: dataset\.text_field 'text' holds a number, wanted text"),
    ("o.jsonl", b'{"text": "a"}\n"b"\n', r"line 2 holds no JSON object; wanted an object with the key 'text'"),
    ("a.jsonl", b'["a"]\n["b"]\n', "the array that it begins is not JSON .*or one object a line"),
    ("a.json", b'[{"text": "a"}, 7]', "object 2 holds no JSON object"),
    ("n.jsonl", b'{"text": "a"}\n{"n": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "line 2 is nested too deep"),
    ("n.json", b"[" * 10_000 + b"]" * 10_000, "is nested too deep"),
    (
        "s.jsonl",
        b'{"text": "a"}\n{"text": "ab\\ud800"}\n',
        r"line 2: character 2 of the text is half a surrogate pair \(.ud800\)",
    ),
    ("p.parquet", b"PAR?", "not a Parquet file"),
]


@pytest.mark.parametrize(("name", "content", "message"), FILES, ids=[name for name, _, _ in FILES])
@pytest.mark.parametrize("seed", [None, 0])
def test_files(tmp_path: Path, name: str, content: bytes, message: str, seed: int | None) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        texts(tmp_path / name, shuffle_seed=seed)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_split_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=r"a\.txt: dataset\.split: unknown split 'test'.*one file is one split"):
        texts(tmp_path / "a.txt", split="test")
    with pytest.raises(DataError, match=r"dataset\.revision 'v1' was given for .*a\.txt"):
        texts(tmp_path / "a.txt", revision="v1")


def test_a_folder_of_a_form_that_is_not_read(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "c.txt"):
        (tmp_path / name).write_text("a")
    with pytest.raises(DataError, match="most files of split 'train' are csv, which is not read; convert them"):
        texts(tmp_path)


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / os.fsdecode(b"caf\xe9")):
        place.mkdir(exist_ok=True)
    try:
        (tmp_path / os.fsdecode(b"caf\xe9") / "a.txt").write_text("a")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(DataError, match=r"the file name b'caf.xe9/a\.txt' is not UTF-8; rename"):
        texts(tmp_path)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "a"}))
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "b"}))
    assert texts(tmp_path) == ["a", "b"]
    assert r"caf\udce9/a.txt" in corpus(tmp_path).lines[1]


def parquet(path: Path, table: pyarrow.Table) -> None:
    pyarrow.parquet.write_table(table, path)


def invalid_text(path: Path) -> None:
    values = pyarrow.array([b"good", b"caf\xe9"], pyarrow.binary())
    parquet(path, pyarrow.table({"text": values.view(pyarrow.string())}))


def cut_pages(path: Path) -> None:
    parquet(path, pyarrow.table({"text": [str(number) * 50 for number in range(2000)]}))
    content = bytearray(path.read_bytes())
    content[100:4000] = bytes(3900)
    path.write_bytes(bytes(content))


PARQUET: list[tuple[str, Callable[[Path], None], str]] = [
    ("other column", lambda path: parquet(path, pyarrow.table({"n": [1]})), r"unknown column 'text'.*\(known: n\)"),
    ("numbers", lambda path: parquet(path, pyarrow.table({"text": [1]})), "column 'text' holds int64, wanted text"),
    (
        "two columns of one name",
        lambda path: parquet(path, pyarrow.table([["a"], ["b"]], names=["text", "text"])),
        "2 columns are named 'text'; rename all but one",
    ),
    ("bytes that are not UTF-8", invalid_text, r"row 1: the text is not UTF-8 \(byte 3 is 0xe9\)"),
    ("damaged pages", cut_pages, r"row 0 or one after it is damaged"),
]


@pytest.mark.parametrize(("make", "message"), [row[1:] for row in PARQUET], ids=[row[0] for row in PARQUET])
def test_parquet(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=rf"x\.parquet: .*{message}"):
        texts(tmp_path / "x.parquet")


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_saved_data_set(tmp_path: Path, name: str, damage: str) -> None:
    made = datasets.Dataset.from_dict({"text": [str(number) * 9 for number in range(3000)]})
    made.save_to_disk(tmp_path / "saved")
    file = tmp_path / "saved" / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    with pytest.raises(DataError, match=r"saved.* damaged .*write it anew"):
        texts(tmp_path / "saved")


@pytest.mark.parametrize(("streaming", "message"), [(False, "row 1 is damaged"), (True, "row 1 cannot be read")])
def test_rows_of_datasets(tmp_path: Path, streaming: bool, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    invalid_text(tmp_path / "set" / "a.parquet")
    rows = hub_rows(str(tmp_path / "set"), None, None, "train", streaming)
    with pytest.raises(DataError, match=rf"data set 'it': {message} \(.*0xe9"):
        list(documents_of_rows(rows, "it", "train", Column("text"), None, Skipped()))


def test_a_data_set_whose_files_are_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    cut_pages(tmp_path / "set" / "a.parquet")
    with pytest.raises(DataError, match=r"its files are damaged .*download them anew"):
        hub_rows(str(tmp_path / "set"), None, None, "train", False)
