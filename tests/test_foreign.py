"""The boundary to other libraries: what they raise is one line with the place and what to do; and so is every error of ours."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec.compression
import pyarrow.parquet
import pytest

from pipeline.corpus.encoded import opened
from pipeline.errors import LONGEST, CheckpointError, DataError, ParamsError
from pipeline.foreign import reading, told
from pipeline.metric_files import read_history, read_metrics
from pipeline.tracking.opening import history_rows
from tests.messages import says
from tests.project import Project
from tests.sealing import rewritten


def raised(error: BaseException, kind: type = DataError) -> BaseException:
    with pytest.raises(BaseException) as caught, reading("a.bin: damaged", "write it anew", kind):  # noqa: PT011
        raise error
    return caught.value


class Panic(BaseException):
    """As a panic of a library written in Rust."""


Panic.__module__ = "pyo3_runtime"


@pytest.mark.parametrize("error", [Exception("x"), ValueError("x"), KeyError("x"), MemoryError("x"), OSError("x"), Panic("x")])
def test_whatever_a_library_raises(error: BaseException) -> None:
    found = raised(error)
    assert type(found) is DataError
    says(found, "a.bin: damaged", "x", "write it anew")
    assert type(raised(error, CheckpointError)) is CheckpointError


@pytest.mark.parametrize(
    "error",
    [
        DataError("mine"),
        ParamsError("mine"),
        KeyboardInterrupt(),
        SystemExit(3),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_what_passes(error: BaseException) -> None:
    assert raised(error) is error


def test_a_librarys_text_is_one_line() -> None:
    assert told(ValueError(" 1 error:\n\n   - no\u2028 such\tkey \x1b[2J")) == r"ValueError: 1 error: - no such key \x1b[2J"
    assert told(KeyError("a")) == "KeyError: 'a'"
    assert told(OSError(2, "No such file", "x")) == "No such file"
    assert told(ValueError()) == "ValueError"
    assert len(told(ValueError("a" * 10_000))) < 400


def test_an_error_is_one_line_for_each_fault() -> None:
    error = DataError(["a\nb: wrong", "c\u2029d \ud800\x00: wrong"])
    assert error.faults == [r"a\nb: wrong", r"c\u2029d \ud800\x00: wrong"]
    assert len(str(error).splitlines()) == 2
    long = DataError("place: " + "x" * 10 * LONGEST + "; do this").faults[0]
    assert len(long) < LONGEST + 10
    says(long, "place:", "do this")


def test_a_decompressor_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zstd comes from a package that may not be there; what it raises is nobody's class."""

    class Frames:
        def __init__(self, raw: Any, mode: str) -> None:
            self.raw = raw

        def __enter__(self) -> Frames:
            return self

        def __exit__(self, *_: object) -> None: ...

        def readinto(self, buffer: Any) -> int:
            class ZstdError(Exception): ...

            raise ZstdError("zstd decompress error: Unknown frame\n descriptor")

    monkeypatch.setitem(fsspec.compression.compr, "zstd", Frames)
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(DataError) as caught, opened(tmp_path / "a.jsonl.zst") as stream:
        stream.read()
    says(caught.value, "a.jsonl.zst:", "damaged", "ZstdError: zstd decompress error: Unknown frame descriptor", "anew")


METRICS: list[tuple[bytes, tuple[object, ...]]] = [
    (b"[1, 2]", ("a list",)),
    (b'"text"', ("a string",)),
    (b"NaN", ("a number",)),
    (b"null", ("null",)),
    (b"", ("damaged",)),
    (b'{"fvu": ', ("damaged",)),
    (b'{"fvu": NaN}', ("fvu", "nan")),
    (b'{"fvu": -Infinity}', ("fvu", "-inf")),
    (b'{"fvu": 1' + b"0" * 400 + b"}", ("fvu", "too large")),
    (b'{"fvu": 1' + b"0" * 5000 + b"}", ("damaged",)),
    (b"\xff", ("damaged",)),
]


@pytest.mark.parametrize(("content", "parts"), METRICS, ids=[str(content[:12]) for content, _ in METRICS])
def test_metrics_of_another_shape(tmp_path: Path, content: bytes, parts: tuple[object, ...]) -> None:
    (tmp_path / "m.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_metrics(tmp_path / "m.json", "the evaluation", "run it again", ["fvu"])
    says(caught.value, "m.json:", "the evaluation", *parts, "run it again")


@pytest.mark.parametrize("value", ['"0.5"', "[0.5]", "null", "true", "{}"])
def test_a_wanted_metric_of_another_type(tmp_path: Path, value: str) -> None:
    (tmp_path / "m.json").write_text(f'{{"fvu": {value}}}')
    with pytest.raises(DataError) as caught:
        read_metrics(tmp_path / "m.json", "the evaluation", "run it again", ["fvu"])
    says(caught.value, "m.json:", "fvu", "run it again")


HISTORY = ['{"step": 1, "loss": "low"}', '{"step": 1.5}', '{"loss": 1.0}', '{"step": null}', '{"step": true}', "[1]", "{", "3"]


@pytest.mark.parametrize("line", [*HISTORY, '{"step": 1, "loss": NaN}'])
def test_a_history_with_wrong_types(tmp_path: Path, line: str) -> None:
    (tmp_path / "h.jsonl").write_text(f'{{"step": 0, "loss": 1.0}}\n{line}\n')
    with pytest.raises(DataError) as caught:
        read_history(tmp_path / "h.jsonl", "train again")
    says(caught.value, "h.jsonl:", "line 2", "train again")
    assert all(isinstance(value, int | float) for row in history_rows(tmp_path / "h.jsonl") for value in row.values())


def one_line(project: Project, stage: str) -> str:
    outcome = project.run(stage)
    assert outcome.exception is None, outcome.exception
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert outcome.exit_code == 2
    return line


def test_metrics_in_training(project: Project) -> None:
    """A foreign file beside the metrics is nobody's business; one in a metric's place is named."""
    metrics = project.path / "metrics"
    for name, content in (("other.json", "[1]"), ("more.json", "{"), ("x.json", "NaN")):
        (metrics / name).write_text(content)
    (metrics / "tokenize.json").unlink()
    assert project.run("train").exit_code == 0
    for content, parts in (("[1]", ("a list",)), ('{"a": NaN}', ("a", "nan")), ('"x"', ("a string",))):
        (metrics / "tokenize.json").write_text(content)
        says(one_line(project, "train"), "metrics/tokenize.json:", *parts, "`dvc repro tokenize`")


def test_what_the_dashboard_reads(project: Project) -> None:
    metrics = project.path / "metrics"
    evaluation, history = (metrics / "evaluation.json").read_text(), (metrics / "train_history.jsonl").read_text()
    (metrics / "train_history.jsonl").write_text(history + '{"step": "last"}\n')
    says(one_line(project, "analyze"), "metrics/train_history.jsonl:", "step", "'last'", "`dvc repro train`")
    (metrics / "train_history.jsonl").write_text(history)
    (metrics / "evaluation.json").write_text(json.dumps({**json.loads(evaluation), "kl": None}))
    says(one_line(project, "analyze"), "metrics/evaluation.json:", "kl", "missing", "`dvc repro evaluate`")
    (metrics / "evaluation.json").write_text("[]")
    says(one_line(project, "analyze"), "metrics/evaluation.json:", "a list", "`dvc repro evaluate`")


def documents(project: Project, content: Callable[[bytes], bytes]) -> None:
    """Change the documents of the training split, and the manifest with them, as if they had been written so."""
    from pipeline.contracts.manifests import digest_of_file

    for split in ("train", "eval"):
        name = f"documents/{split}.jsonl"
        file = project.path / "data" / "tokens.zarr" / name
        file.write_bytes(content(file.read_bytes()))
        entry = [file.stat().st_size, digest_of_file(file)]
        rewritten(
            project.path / "data" / "tokens.zarr" / "manifest.json",
            lambda values, name=name, entry=entry: values["files"].update({name: entry}),
        )


@pytest.mark.parametrize(
    "content",
    [
        lambda old: b"",
        lambda old: old[:50],
        lambda old: b"[1]" + b" " * (len(old) - 3),
        lambda old: old.replace(b'"key"', b'"kei"'),
    ],
    ids=["empty", "cut", "no objects", "no key"],
)
def test_documents_that_are_not_there(project: Project, content: Callable[[bytes], bytes]) -> None:
    documents(project, content)
    says(one_line(project, "analyze"), "documents/train.jsonl:", "document", "`dvc repro tokenize`")


def test_a_configuration_that_makes_no_model_is_refused_in_one_line(project: Project) -> None:
    """transformers says it in several."""
    path = project.path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_attention_heads": 3}))
    says(one_line(project, "tokenize_corpus"), "no model can be made of the configuration of 'model'", "hidden size", "restore")


def test_a_damaged_parquet_page(tmp_path: Path) -> None:
    from pipeline.corpus.local import local_documents

    table = pyarrow.table({"text": [f"text {number}" for number in range(5000)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[200:400] = bytes(200)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(local_documents(tmp_path / "a.parquet", "text"))
    says(caught.value, "a.parquet:", "row 0", "anew")
