"""Documents of a data set of the Hugging Face hub, downloaded or streamed, or of one saved by `datasets` on disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.corpus.document import Document
from pipeline.errors import DataError, unknown_name


def _load(name: str, config_name: str | None, split: str, streaming: bool) -> Any:
    import datasets

    datasets.disable_progress_bars()
    where = f"data set '{name}'" + (f" ({config_name})" if config_name else "")
    try:
        return datasets.load_dataset(name, config_name, split=split, streaming=streaming)
    except ValueError as error:
        # An unknown split or configuration; the library's message lists those that exist.
        raise DataError(f"{where}: dataset.split '{split}': {_first_line(error)}") from None
    except (FileNotFoundError, ConnectionError, OSError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") not in (None, "", "0") else ""
        raise DataError(
            f"{where} was not found on the hub or in its cache{offline}: {_first_line(error)}; "
            "dataset.dataset_name_or_path takes 'demo', a hub id, or a local file or directory (.txt, .jsonl, .parquet)"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def saved_on_disk(path: Path) -> bool:
    """Whether `path` is a directory written by `Dataset.save_to_disk`."""
    return (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()


def _saved(path: Path, split: str) -> Any:
    import datasets

    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise DataError(f"{path}: dataset.split: {unknown_name('split', split, loaded)}")
        return loaded[split]
    return loaded


def documents_of_rows(rows: Any, name: str, split: str, text_field: str) -> Iterator[Document]:
    """The documents of a data set's rows; the token store keeps row and field instead of the text.

    Raises:
        DataError: no such field, or it holds no text.
    """
    columns: Iterable[str] | None = getattr(rows, "column_names", None)
    if columns is not None and text_field not in columns:
        raise DataError(f"data set '{name}': dataset.text_field: {unknown_name('column', text_field, columns)}")
    for number, row in enumerate(rows):
        if text_field not in row:
            raise DataError(f"data set '{name}': dataset.text_field: {unknown_name('column', text_field, row)}")
        text = row[text_field]
        if not isinstance(text, str):
            raise DataError(
                f"data set '{name}', row {number}: dataset.text_field '{text_field}' holds {type(text).__name__}, wanted text"
            )
        if text.strip():
            origin: dict[str, str | int] = {"dataset": name, "split": split, "row": number, "field": text_field}
            yield Document(f"{name}/{split}#{number}", text, origin, keep_text=False)


def hub_documents(name: str, config_name: str | None, split: str, text_field: str, streaming: bool) -> Iterator[Document]:
    """The documents of a hub data set (or of a directory in the hub's form).

    Raises:
        DataError: data set, split or text field do not exist.
    """
    yield from documents_of_rows(_load(name, config_name, split, streaming), name, split, text_field)


def saved_documents(path: Path, split: str, text_field: str) -> Iterator[Document]:
    """The documents of a data set saved on disk by `datasets`."""
    yield from documents_of_rows(_saved(path, split), str(path), split, text_field)
