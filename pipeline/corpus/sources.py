"""From `dataset.dataset_name_or_path` to documents: `demo`, a local file or directory, or a hub id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.corpus.document import Document, held_out
from pipeline.errors import DataError

if TYPE_CHECKING:
    from pipeline.params.schema import DatasetParams

DEMO = "demo"


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith((".txt", ".jsonl", ".parquet")) or name.count("/") > 1


def documents(dataset: DatasetParams, demo_packages: Sequence[str]) -> Iterator[Document]:
    """The documents of the data set, in a fixed order.

    Args:
        dataset: the dataset section.
        demo_packages: `demo.text_packages`, read for the data set `demo`.

    Raises:
        DataError: the data set does not exist or cannot be read.
    """
    name = dataset.dataset_name_or_path
    if name == DEMO:
        from pipeline.corpus.demo import demo_documents

        is_held_out = partial(held_out, fraction=dataset.eval_fraction, seed=dataset.split_seed)
        return demo_documents(demo_packages, is_held_out)
    path = Path(name).expanduser()
    if path.exists():
        from pipeline.corpus.hub import saved_documents, saved_on_disk
        from pipeline.corpus.local import local_documents

        if saved_on_disk(path):
            return saved_documents(path, dataset.split, dataset.text_field)
        return local_documents(path, dataset.text_field)
    if _looks_local(name):
        raise DataError(f"{name}: dataset.dataset_name_or_path: no such file or directory; give a path, a hub id or 'demo'")
    from pipeline.corpus.hub import hub_documents

    return hub_documents(name, dataset.config_name, dataset.split, dataset.text_field, dataset.streaming)
