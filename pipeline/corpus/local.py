"""Documents of local files: .txt, .jsonl, .parquet, and data sets saved by `datasets` (save_to_disk).

A text file is cut into documents at lines that hold only <|endoftext|>; where there are none, at blank lines, paragraphs
being gathered to at least 2,000 characters. A line of a .jsonl file and a row of a .parquet file are a document each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.corpus.document import Document
from pipeline.errors import DataError, unknown_name

SUFFIXES = (".txt", ".jsonl", ".parquet")
SEPARATOR = "<|endoftext|>"
GATHERED_CHARACTERS = 2000


def local_files(path: Path) -> list[Path]:
    """The files of a local corpus: the file itself, or those of a directory (recursively), sorted.

    Raises:
        DataError: no such path, no file of a known form in it, or an unknown suffix.
    """
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(
                f"{path}: dataset.dataset_name_or_path: unknown form '{path.suffix}'; wanted one of {', '.join(SUFFIXES)}"
            )
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise DataError(f"{path}: dataset.dataset_name_or_path: no {', '.join(SUFFIXES)} file in this directory")
    return files


def _text_of(path: Path) -> str:
    content = path.read_bytes()
    if not content.strip():
        raise DataError(f"{path}: the text file is empty; give a file with text")
    at = content.find(b"\0")
    if at < 0:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            at = error.start
    raise DataError(f"{path}: not a UTF-8 text file (byte {at} is {content[at]:#04x}); give plain text, .jsonl or .parquet")


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    text = _text_of(path).replace("\r\n", "\n")
    lines = text.split("\n")
    if any(line.strip() == SEPARATOR for line in lines):
        part: list[str] = []
        number = 0
        for line in [*lines, SEPARATOR]:
            if line.strip() == SEPARATOR:
                if "".join(part).strip():
                    yield number, "\n".join(part).strip("\n")
                    number += 1
                part = []
            else:
                part.append(line)
        return
    gathered: list[str] = []
    number = size = 0
    for paragraph in text.split("\n\n"):
        if paragraph.strip():
            gathered.append(paragraph)
            size += len(paragraph)
        if size >= GATHERED_CHARACTERS:
            yield number, "\n\n".join(gathered)
            number, gathered, size = number + 1, [], 0
    if gathered:
        yield number, "\n\n".join(gathered)


def _json_lines(path: Path, field: str) -> Iterator[tuple[int, str]]:
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; give one JSON object a line")
    with open(path, "rb") as stream:
        for number, line in enumerate(stream):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                raise DataError(f"{path}: line {number + 1} is not JSON ({error}); wanted one JSON object a line") from None
            if not isinstance(record, dict) or field not in record:
                known = list(record) if isinstance(record, dict) else []
                raise DataError(f"{path}: line {number + 1}: dataset.text_field: {unknown_name('field', field, known)}")
            if not isinstance(record[field], str):
                raise DataError(
                    f"{path}: line {number + 1}: dataset.text_field '{field}' holds {type(record[field]).__name__}, wanted text"
                )
            yield number, record[field]


def _parquet(path: Path, field: str) -> Iterator[tuple[int, str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file ({error})") from None
    with file:
        if field not in file.schema_arrow.names:
            raise DataError(f"{path}: dataset.text_field: {unknown_name('column', field, file.schema_arrow.names)}")
        kind = file.schema_arrow.field(field).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise DataError(f"{path}: dataset.text_field: column '{field}' holds {kind}, wanted text")
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=[field]):
            for text in batch.column(0).to_pylist():
                if text is not None:
                    yield number, text
                number += 1


def local_documents(path: Path, text_field: str) -> Iterator[Document]:
    """The documents of a local file or directory, in order.

    Args:
        path: file or directory.
        text_field: key (.jsonl) or column (.parquet) with the text.

    Raises:
        DataError: missing, empty, binary or malformed files, by name and place.
    """
    base = path if path.is_dir() else path.parent
    for file in local_files(path):
        name = file.relative_to(base).as_posix()
        if file.suffix == ".txt":
            rows = _texts(file)
        elif file.suffix == ".jsonl":
            rows = _json_lines(file, text_field)
        else:
            rows = _parquet(file, text_field)
        for number, text in rows:
            if text.strip():
                yield Document(f"{name}#{number}", text, {"file": name, "row": number})
