"""From `dataset.dataset_name_or_path` to documents: `demo`, a local file or directory, or a hub id."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.corpus.document import Document, held_out
from pipeline.corpus.folder import holds_text
from pipeline.corpus.mixture import of_source
from pipeline.corpus.pieces import Column, Skipped
from pipeline.errors import DataError
from pipeline.files import local_path, looked_in, near

if TYPE_CHECKING:
    from pipeline.corpus.chat import ChatTemplate
    from pipeline.params.schema import DatasetParams

DEMO = "demo"


@dataclass
class Corpus:
    """The documents of a data set, in a fixed order; iterating reads them.

    Attributes:
        read: reads them.
        lines: what of the data set is read and what is left.
        skipped: rows without a document among those read so far.
    """

    read: Callable[[Skipped], Iterator[Document]]
    lines: list[str] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)

    def __iter__(self) -> Iterator[Document]:
        return self.read(self.skipped)


def looks_local(name: str) -> bool:
    """Whether `name` is a path by its form: no hub id is written so."""
    return name.startswith((".", "/", "~")) or name.endswith((".txt", ".json", ".jsonl", ".parquet")) or name.count("/") > 1


def no_such_text(name: str) -> DataError:
    """The error for a path where nothing is."""
    return DataError(
        f"{name}: dataset.dataset_name_or_path: no such file or directory ({looked_in(name)}){near(name, holds_text)}; give a "
        "path, a hub id or 'demo'"
    )


def documents(dataset: DatasetParams, demo_packages: Sequence[str], chat: ChatTemplate | None = None) -> Corpus:
    """The documents of the one data set that the section names.

    Args:
        dataset: the dataset section; of several sources one of `dataset.each()`.
        demo_packages: `demo.text_packages`, read for the data set `demo`.
        chat: makes texts of the messages of `dataset.messages_field`.

    Raises:
        DataError: the data set does not exist or cannot be read.
    """
    name = dataset.dataset_name_or_path
    column = Column(dataset.text_field)
    if dataset.messages_field is not None:
        column = Column(dataset.messages_field, chat, dataset.assistant_tokens_only)
    if name == DEMO:
        if column.chat is not None:
            raise DataError("dataset.messages_field: the data set 'demo' holds no messages; set it to null, or name another")
        from pipeline.corpus.demo import demo_documents

        is_held_out = partial(held_out, fraction=dataset.eval_fraction, seed=dataset.split_seed)
        return Corpus(lambda _: demo_documents(demo_packages, is_held_out))
    path = local_path(name)
    if path is not None:
        if dataset.revision is not None:
            raise DataError(
                f"dataset.revision '{dataset.revision}' was given for {path}, which has no revisions; set it to null"
            )
        return _local(path, dataset, column)
    if looks_local(name):
        raise no_such_text(name)
    from pipeline.corpus.hub import documents_of_rows, hub_rows

    rows = hub_rows(name, dataset.config_name, dataset.revision, dataset.split, dataset.streaming)
    return Corpus(partial(documents_of_rows, rows, name, dataset.split, column, dataset.shuffle_seed))


def corpora(dataset: DatasetParams, demo_packages: Sequence[str], chat: ChatTemplate | None = None) -> dict[str, Corpus]:
    """The documents of each source by its name; {"": those of the one data set}.

    Args:
        dataset: the dataset section.
        demo_packages, chat: as of :func:`documents`.

    Raises:
        DataError: a data set does not exist or cannot be read; of several the message begins with the source's key.
    """
    found = {}
    for name, part in dataset.each().items():
        with of_source(name):
            found[name] = documents(part, demo_packages, chat)
    return found


def _local(path: Path, dataset: DatasetParams, column: Column) -> Corpus:
    from pipeline.corpus.hub import documents_of_rows, saved_on_disk, saved_rows

    if saved_on_disk(path):
        rows = saved_rows(path, dataset.split)
        return Corpus(
            partial(documents_of_rows, rows, dataset.dataset_name_or_path, dataset.split, column, dataset.shuffle_seed)
        )
    from pipeline.corpus.file_split import held_out_files
    from pipeline.corpus.folder import text_files
    from pipeline.corpus.local import documents_of_files

    files = text_files(path, dataset.split, dataset.config_name)
    whole_files = partial(held_out_files, fraction=dataset.eval_fraction, seed=dataset.split_seed)
    read = partial(documents_of_files, files, column, dataset.shuffle_seed, held_out=whole_files)
    return Corpus(read, files.lines())
