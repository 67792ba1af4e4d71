"""Local and hub-form data sets: what is read of them, and in which order."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import tempfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.document import Document
from pipeline.corpus.hub import documents_of_rows, hub_rows
from pipeline.corpus.local import local_documents
from pipeline.corpus.pieces import PIECE_BYTES, Column, Skipped
from pipeline.corpus.sources import Corpus, documents
from pipeline.corpus.text_form import GATHERED_CHARACTERS, SEPARATOR
from pipeline.errors import DataError
from pipeline.params.schema import DatasetParams
from tests.messages import saying, says


def corpus(name: Path | str, **params: Any) -> Corpus:
    """The corpus of a path, in the order of its files."""
    return documents(DatasetParams(**{"dataset_name_or_path": str(name), "shuffle_seed": None, **params}), ())


def texts(name: Path | str, **params: Any) -> list[str]:
    return [document.text for document in corpus(name, **params)]


def write(base: Path, files: dict[str, str]) -> Path:
    """A folder of files; the text of each is its content, or a JSON line or row of it."""
    for name, text in files.items():
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"text": text}) + "\n"
        if name.endswith(".parquet"):
            pyarrow.parquet.write_table(pyarrow.table({"text": [text]}), path)
        elif ".jsonl" in name.lower():
            opened = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix, open)
            with opened(path, "wt") as stream:  # type: ignore[operator]
                stream.write(line)
        else:
            path.write_text(text)
    return base


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
    assert texts(jsonl, text_field="body") == texts(parquet, text_field="body") == rows[:2]


def cut_at_once(text: str) -> list[str]:
    """The rule of a .txt file, on all of it in memory."""
    lines = text.split("\n")
    if any(line.strip() == SEPARATOR for line in lines):
        parts: list[list[str]] = [[]]
        for line in lines:
            if line.strip() == SEPARATOR:
                parts.append([])
            else:
                parts[-1].append(line)
        return ["\n".join(part).strip("\n") for part in parts if "".join(part).strip()]
    found: list[list[str]] = [[]]
    for paragraph in filter(str.strip, text.split("\n\n")):
        if sum(map(len, found[-1])) >= GATHERED_CHARACTERS:
            found.append([])
        found[-1].append(paragraph)
    return ["\n\n".join(paragraphs) for paragraphs in found if paragraphs]


PARTS = st.sampled_from(["\n", "\n\n", "a", " ", "long " * 250, "\n<|endoftext|>\n", "\r\n", "<|endoftext|>", "\u00e9"])


@given(st.lists(PARTS, max_size=30), st.booleans())
def test_a_text_file_is_cut_line_by_line_as_it_would_be_at_once(parts: list[str], separators: bool) -> None:
    text = "".join(part for part in parts if separators or SEPARATOR not in part) + "end"
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "a.txt").write_text(text, newline="")
        assert texts(Path(place) / "a.txt") == cut_at_once(text.replace("\r\n", "\n"))


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_form(tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")  # not that of the user
    data = tmp_path / "set" / "data"
    data.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a b", " ", "c d"]}), data / "train-00000-of-00001.parquet")
    name = str(tmp_path / "set")

    def rows(split: str = "train", field: str = "text", seed: int | None = None) -> list[Document]:
        return list(
            documents_of_rows(hub_rows(name, None, None, split, streaming), name, split, Column(field), seed, Skipped())
        )

    found = rows()
    assert [d.text for d in found] == ["a b", "c d"]
    assert [d.origin["row"] for d in found] == [0, 2]
    assert not any(d.keep_text for d in found)
    assert {d.key: d for d in rows(seed=1)} == {d.key: d for d in found}
    with pytest.raises(DataError, match=r"dataset\.split 'validation'.*train"):
        rows("validation")
    with pytest.raises(DataError, match=r"unknown column 'txt'; did you mean 'text'"):
        rows(field="txt")


def test_saved_on_disk(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"text": ["x y", "z"]})
    made.save_to_disk(tmp_path / "plain")
    assert texts(tmp_path / "plain") == ["x y", "z"]
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "dict")
    assert texts(tmp_path / "dict") == ["x y", "z"]
    with pytest.raises(DataError, match=saying("dataset.split:", "unknown", "'test'", "train")):
        texts(tmp_path / "dict", split="test")


FOLDERS = {
    "compressed and upper case": (
        {"a.jsonl": "a", "b.JSONL": "b", "c.jsonl.gz": "c", "d.jsonl.bz2": "d", "e.jsonl.xz": "e", "sub/f.jsonl": "f"},
        {"train": "abcdef"},
    ),
    "what is no text": (
        {
            "a.txt": "a",
            ".ipynb_checkpoints/a.txt": "no",
            "__pycache__/b.txt": "no",
            "LICENSE.txt": "no",
            "README.txt": "no",
            "notice-board.txt": "b",
        }
        | {".hidden.txt": "no", "c.md": "no", "d": "no"},
        {"train": "ab"},
    ),
    "the commonest form": ({"a.jsonl": "a", "b.jsonl": "b", "vocabulary.txt": "no"}, {"train": "ab"}),
    "form of the hub": (
        {"data/train-00000-of-00002.parquet": "a", "data/train-00001-of-00002.parquet": "b"}
        | {"data/test-00000-of-00001.parquet": "c", "data/extra-00000-of-00001.parquet": "d", "data/more.parquet": "no"},
        {"train": "ab", "test": "c", "extra": "d"},
    ),
    "splits as folders": ({"train/a.txt": "a", "my-test/b.txt": "b", "other/c.txt": "no"}, {"train": "a", "test": "b"}),
    "splits in names": (
        {"my_train.jsonl": "a", "valid.jsonl": "b", "test-1.jsonl": "c", "contest.jsonl": "no"},
        {"train": "a", "validation": "b", "test": "c"},
    ),
    "words that only hold a split's": ({"latest.txt": "a", "trainers.txt": "b"}, {"train": "ab"}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_files_of_a_folder_are_those_of_its_split(tmp_path: Path, name: str) -> None:
    files, wanted = FOLDERS[name]
    write(tmp_path, files)
    for split, letters in wanted.items():
        assert texts(tmp_path, split=split) == list(letters)
    with pytest.raises(DataError, match=rf"dataset\.split: unknown split 'none' \(known: {', '.join(sorted(wanted))}\)"):
        texts(tmp_path, split="none")


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "compressed and upper case"])
def test_the_library_reads_the_same_files(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But a README.txt or LICENSE.txt, which it takes for text, and suffixes in upper case, which it leaves."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    files, wanted = FOLDERS[name]
    write(tmp_path / "set", {name: text for name, text in files.items() if not re.match("README|LICENSE", name)})
    stated = datasets.load_dataset_builder(str(tmp_path / "set")).config.data_files
    found = {str(split): len(places) for split, places in stated.items()}
    assert found == {split: len(letters) for split, letters in wanted.items()}


def test_what_is_read_and_what_is_left_is_said(tmp_path: Path) -> None:
    write(tmp_path, {"a.jsonl": "a", "b.jsonl.gz": "b", "test.md": "", "LICENSE.txt": "", ".ipynb_checkpoints/a.jsonl": ""})
    read, left = corpus(tmp_path).lines
    assert "split train: 2 (1 .jsonl, 1 .jsonl.gz: a.jsonl, b.jsonl.gz) read" in read
    assert "left unread: 3 (" in left
    assert all(what in left for what in ("1 folder", "1 .md", "1 .txt", ".ipynb_checkpoints/, LICENSE.txt, test.md"))
    says(left, "files of one form", ".txt", ".jsonl", ".parquet")


def test_a_linked_folder_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, {"elsewhere/a.txt": "a", "corpus/b.txt": "b"})
    (tmp_path / "corpus" / "link").symlink_to("../elsewhere")
    (tmp_path / "corpus" / "back").symlink_to(".")
    assert texts(tmp_path / "corpus") == ["b", "a"]


def test_configurations_that_a_readme_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    base = write(tmp_path / "set", {"en/one.jsonl": "a", "de/one.jsonl": "b", "de/two.jsonl": "c"})
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/*.jsonl\n" for name in ("en", "de")
    )
    (base / "README.md").write_text(f"---\nconfigs:\n{configs}---\n# A set\n")
    assert texts(base, config_name="de") == ["b", "c"]
    assert texts(base, config_name="en") == ["a"]
    with pytest.raises(DataError, match=r"README\.md: .*fr"):
        texts(base, config_name="fr")
    with pytest.raises(DataError, match="unknown split 'test'"):
        texts(base, config_name="de", split="test")
    (base / "README.md").unlink()
    with pytest.raises(DataError, match=r"dataset\.config_name 'de'"):
        texts(base, config_name="de")


def long_corpus(base: Path, form: str, n: int = 400) -> Path:
    """Two files, the second of which has nine tenths of the documents; each of them is longer than a piece."""
    word = "x" * (PIECE_BYTES // n * 12)
    for name, start, stop in (("a", 0, n // 10), ("b", n // 10, n)):
        rows = [{"text": f"{at} {word}"} for at in range(start, stop)]
        base.mkdir(parents=True, exist_ok=True)
        if form == "parquet":
            table = pyarrow.Table.from_pylist(rows)
            pyarrow.parquet.write_table(table, base / f"{name}.parquet", row_group_size=16)
        else:
            (base / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return base


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_what_is_read_first_is_a_fair_sample(tmp_path: Path, form: str) -> None:
    base = long_corpus(tmp_path, form)
    in_order = {document.key: document for document in corpus(base)}
    shuffled = list(corpus(base, shuffle_seed=0))
    assert {document.key: document for document in shuffled} == in_order
    assert len(shuffled) == len(in_order) == 400
    numbers = [int(document.text.split()[0]) for document in shuffled]
    first = numbers[:100]
    of_a = sum(number < 40 for number in first)
    assert 2 <= of_a <= 25  # ten are expected
    assert max(first) > 300
    assert 120 < sum(first) / len(first) < 280  # 199.5 is expected
    assert numbers == [int(document.text.split()[0]) for document in corpus(base, shuffle_seed=0)]
    assert numbers != [int(document.text.split()[0]) for document in corpus(base, shuffle_seed=1)]


def test_a_saved_data_set_is_sampled_too(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": [str(number) for number in range(5000)]}).save_to_disk(tmp_path / "saved")
    found = list(corpus(tmp_path / "saved", shuffle_seed=0))
    assert sorted(int(document.text) for document in found) == list(range(5000))
    assert all(document.origin["row"] == int(document.text) for document in found)
    assert 2000 < sum(int(document.text) for document in found[:500]) / 500 < 3000


NULLS = ["one", None, "two", None]


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "saved"])
def test_null_rows_are_skipped_and_counted(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"x.{form}"
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": NULLS}), path)
    elif form == "saved":
        datasets.Dataset.from_dict({"text": NULLS}).save_to_disk(path)
    elif form == "json":
        path.write_text(json.dumps([{"text": text} for text in NULLS], indent=1))
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in NULLS))
    found = corpus(path)
    assert [(document.text, document.origin["row"]) for document in found] == [("one", 0), ("two", 2)]
    assert found.skipped.null_rows == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.jsonl", b'\xef\xbb\xbf{"text": "a"}\n'),
        ("bom.txt", b"\xef\xbb\xbfa"),
        ("array.json", b'[{"text": "a"}]'),
        ("array.jsonl", b'\xef\xbb\xbf \n[\n{"text": "a", "n": 1}]'),
        ("pretty.json", b'{"text": "a"}'),
        ("long_integer.jsonl", b'{"text": "a", "n": ' + b"7" * 5000 + b"}\n"),
    ],
)
def test_what_is_unusual_and_read(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert texts(tmp_path / name) == ["a"]


def test_a_relative_path_is_looked_for_in_the_checkout_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an experiment runs in a copy that lacks what git does not know."""
    checkout, copy = write(tmp_path / "checkout", {"texts/a.txt": "a"}), tmp_path / "copy"
    copy.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(checkout))
    monkeypatch.chdir(copy)
    assert texts("texts/a.txt") == texts("texts") == ["a"]
    write(copy, {"texts/a.txt": "of the copy"})
    assert texts("texts") == ["of the copy"]


def test_places_that_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=saying("none.txt:", "dataset.dataset_name_or_path:", "demo")):
        texts(tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"no file of the form \.txt, \.jsonl"):
        texts(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"data set 'no-such/data-set' was not found.*no file or directory .* in {tmp_path}"):
        texts("no-such/data-set")
