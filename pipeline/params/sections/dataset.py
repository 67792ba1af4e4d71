"""The text, and which of it is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.section import Section

NOT_EMPTY = (r"(?s).*\S.*", "text that is not empty")


@dataclass(frozen=True)
class DatasetParams(Section):
    """Fields: see the comments of params.yaml."""

    NAME: ClassVar[str] = "dataset"

    dataset_name_or_path: str = param("demo", form=NOT_EMPTY, also_called=("name", "path", "dataset_path"))
    config_name: str | None = param(None, form=NOT_EMPTY)
    split: str = param("train", form=NOT_EMPTY)
    text_field: str = param("text", form=NOT_EMPTY)
    streaming: bool = param(False)
    eval_fraction: float = param(0.05, more_than=0, less_than=1)
    split_seed: int = param(0, at_least=0)
