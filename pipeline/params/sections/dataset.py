"""The text, and which of it is held out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from pipeline.params.fields import param
from pipeline.params.section import Fault, Section, rule, without_effect
from pipeline.params.sections.model import ALIAS_FORM

NOT_EMPTY = (r"[\s\S]*\S[\s\S]*", "text that is not empty")


@dataclass(frozen=True)
class SourceParams(Section):
    """What is read, and as what."""

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
    messages_field: str | None = param(
        None,
        form=NOT_EMPTY,
        about="column or JSON key that holds chat messages, [{role, content}], of which the tokenizer's chat template makes "
        "the text; null: text_field",
    )
    assistant_tokens_only: bool = param(
        False,
        also_called=("assistant_only", "assistant_only_loss"),
        about="true: of chat messages only the assistant's tokens count, the others are read by the model and left out",
    )
    streaming: bool = param(False, about="true: read a hub data set without downloading all of it")

    @rule("assistant_tokens_only")
    def _the_assistant_is_in_a_chat(self) -> str | None:
        if self.assistant_tokens_only and self.messages_field is None:
            return "true needs messages, and messages_field is null; name the column that holds them, or write false"
        return None


@dataclass(frozen=True)
class NamedSourceParams(SourceParams):
    """One of several data sets that are mixed (`dataset.sources`)."""

    NAME: ClassVar[str] = "dataset.sources"

    dataset_name_or_path: str = param(form=NOT_EMPTY, also_called=("path", "dataset_path"))
    weight: float = param(1.0, more_than=0, about="share of the training tokens, relative to the weights of the other sources")


def called(name_or_path: str) -> str:
    """What a source is called that has no name: `web-text` of /data/web.text.jsonl.gz, `c4` of allenai/c4."""
    last = name_or_path.rstrip("/").rpartition("/")[2]
    stem = re.sub(r"(\.(txt|jsonl?|ndjson|parquet|gz|bz2|xz|zst))+$", "", last, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).lstrip("-0123456789") or "source"


@dataclass(frozen=True)
class DatasetParams(SourceParams):
    """The text."""

    NAME: ClassVar[str] = "dataset"

    shuffle_seed: int | None = param(
        0, at_least=0, about="order in which documents are read (demo has its own); null: as the files have them"
    )
    eval_fraction: float = param(
        0.05,
        more_than=0,
        less_than=1,
        about="share of the documents held out for evaluation; of text files in pieces, of their bytes",
    )
    split_seed: int = param(0, at_least=0, about="which documents are held out")
    near_duplicate_similarity: float | None = param(
        None,
        more_than=0,
        at_most=1,
        about="documents that share so much of their five-word sequences stay on one side; null: only equal ones",
    )
    sources: Mapping[str, NamedSourceParams] | None = param(
        None,
        form=ALIAS_FORM,
        listed=True,
        about="data sets that are mixed: {name: {dataset_name_or_path, weight, ...}}, or a list of them; null: the one above",
    )

    @classmethod
    def completed(cls, raw: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Fault]]:
        """A list of sources is read as names and sources: each is called by its `name`, or by where it lies."""
        listed = raw.get("sources")
        if not isinstance(listed, (list, tuple)) or not all(isinstance(each, Mapping) for each in listed):
            return raw, []
        named: dict[Any, Any] = {}
        faults: list[Fault] = []
        for each in listed:
            name = each.get("name") or called(str(each.get("dataset_name_or_path", "")))
            if name in named:
                faults.append(Fault("sources", f"two sources are called '{name}'; give one of them a `name` of its own"))
            named[name] = {key: value for key, value in each.items() if key != "name"}
        return {**raw, "sources": named}, faults

    @rule("sources", of_files=True)
    def _sources_take_the_place_of_the_one(self) -> str | None:
        names = [field.name for field in fields(SourceParams)]
        if self.sources is None or not (idle := without_effect(SourceParams, self, names)):
            return None
        return f"beside sources {idle}, and state what is meant for a source there"

    def each(self) -> dict[str, DatasetParams]:
        """The sources by name, each as a data set of its own; {"": self} where there is but one."""
        if self.sources is None:
            return {"": self}
        names = [field.name for field in fields(SourceParams)]
        return {
            name: replace(self, sources=None, **{key: getattr(source, key) for key in names})
            for name, source in self.sources.items()
        }
