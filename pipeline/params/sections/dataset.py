"""The text, and which of it is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.section import Section

NOT_EMPTY = (r"[\s\S]*\S[\s\S]*", "text that is not empty")


@dataclass(frozen=True)
class DatasetParams(Section):
    """The text."""

    NAME: ClassVar[str] = "dataset"

    dataset_name_or_path: str = param(
        "demo",
        form=NOT_EMPTY,
        also_called=("name", "path", "dataset_path"),
        about="demo, hub id, or a local .txt, .jsonl, .json or .parquet file, or a directory of them",
    )
    config_name: str | None = param(None, form=NOT_EMPTY, about="configuration of a hub data set; null: its default")
    revision: str | None = param(
        None, form=NOT_EMPTY, about="branch, tag or commit of a hub data set; null: its default branch, whatever it is now"
    )
    split: str = param(
        "train", form=NOT_EMPTY, about="split of a hub data set, or of a directory whose files are named by splits"
    )
    text_field: str = param("text", form=NOT_EMPTY, about="column or JSON key that holds the text")
    streaming: bool = param(False, about="true: read a hub data set without downloading all of it")
    shuffle_seed: int | None = param(
        0, at_least=0, about="order in which documents are read (demo has its own); null: as the files have them"
    )
    eval_fraction: float = param(0.05, more_than=0, less_than=1, about="share of the documents held out for evaluation")
    split_seed: int = param(0, at_least=0, about="which documents are held out")
    near_duplicate_similarity: float | None = param(
        None,
        more_than=0,
        at_most=1,
        about="documents that share so much of their five-word sequences stay on one side; null: only equal ones",
    )
