"""dataset.sources: names and data sets, as a mapping or as a list; chat keys; presets and flags over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.params.documents.json_schema import json_schema
from pipeline.params.loader import params_from_dict
from pipeline.params.preset_flags import flags
from pipeline.params.presets import NAMED, apply_preset, overlay
from pipeline.params.schema import DatasetParams
from tests.closure import ROOT
from tests.messages import says
from tests.params.changes import changed, faults, one_fault
from tests.params.json_schema import complaints

TWO = {"web": {"dataset_name_or_path": "web.jsonl", "weight": 3}, "chat": {"dataset_name_or_path": "c", "messages_field": "m"}}


def read(changes: dict[str, Any]) -> DatasetParams:
    return params_from_dict(changed(changes)).dataset


def test_each_source_is_a_data_set_of_its_own() -> None:
    dataset = read({"dataset.sources": TWO, "dataset.shuffle_seed": 5, "dataset.eval_fraction": 0.2})
    assert dataset.sources is not None
    assert {name: source.weight for name, source in dataset.sources.items()} == {"web": 3.0, "chat": 1.0}
    each = dataset.each()
    assert list(each) == ["web", "chat"]
    for name, part in each.items():
        assert part.sources is None
        assert (part.shuffle_seed, part.eval_fraction, part.split) == (5, 0.2, "train")
        assert part.dataset_name_or_path == TWO[name]["dataset_name_or_path"]
        assert part.messages_field == TWO[name].get("messages_field")
    assert read({}).each() == {"": read({})}


def test_a_list_is_the_same_as_names() -> None:
    listed = [{"name": name, **source} for name, source in TWO.items()]
    assert read({"dataset.sources": listed}) == read({"dataset.sources": TWO})


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/web.text.jsonl.gz", "web-text"),
        ("allenai/c4", "c4"),
        ("texts/", "texts"),
        ("./2024-books.parquet", "books"),
        ("demo", "demo"),
        ("12.txt", "source"),
    ],
)
def test_a_source_of_a_list_is_called_by_where_it_lies(path: str, name: str) -> None:
    sources = read({"dataset.sources": [{"dataset_name_or_path": path}]}).sources
    assert sources is not None
    assert list(sources) == [name]


FAULTS: list[tuple[dict[str, Any], str, tuple[object, ...]]] = [
    ({"dataset.sources": {}}, "dataset.sources", ("a mapping of names", "null", "an empty one")),
    ({"dataset.sources": []}, "dataset.sources", ("a mapping of names", "null")),
    ({"dataset.sources": ["a"]}, "dataset.sources", ("a mapping of names", "a list")),
    ({"dataset.sources": {"1st": {"dataset_name_or_path": "a"}}}, "dataset.sources", ("'1st'", "letters")),
    ({"dataset.sources": {"a": {"weight": 1}}}, "dataset.sources.a.dataset_name_or_path", ("missing",)),
    (
        {"dataset.sources": {"a": {"dataset_name_or_path": "a", "wieght": 1}}},
        "dataset.sources.a.wieght",
        ("weight",),
    ),
    ({"dataset.sources": {"a": {"dataset_name_or_path": "a", "weight": 0}}}, "dataset.sources.a.weight", (0,)),
    (
        {"dataset.sources": [{"dataset_name_or_path": "x/a"}, {"dataset_name_or_path": "a.txt"}]},
        "dataset.sources",
        ("'a'", "`name`"),
    ),
    (
        {"dataset.sources": TWO, "dataset.dataset_name_or_path": "x", "dataset.split": "test"},
        "dataset.sources",
        ("dataset_name_or_path x", "split test", "split: train"),
    ),
    (
        {"dataset.sources": {"a": {"dataset_name_or_path": "a", "assistant_tokens_only": True}}},
        "dataset.sources.a.assistant_tokens_only",
        ("messages_field", "false"),
    ),
    ({"dataset.assistant_tokens_only": True}, "dataset.assistant_tokens_only", ("messages_field", "false")),
]


@pytest.mark.parametrize(("changes", "key", "parts"), FAULTS)
def test_what_is_refused(changes: dict[str, Any], key: str, parts: tuple[object, ...]) -> None:
    one_fault(changes, key, *parts)


def test_the_schema_takes_both_forms() -> None:
    schema = json_schema()
    listed = [{"name": "b", **TWO["web"]}, TWO["chat"]]
    for sources in (None, TWO, listed):
        assert not faults({"dataset.sources": sources})
        assert complaints(schema, changed({"dataset.sources": sources})) == []
    for sources in (
        {},
        [],
        "a",
        {"a": {"weight": 1}},
        [{"weight": 1}],
        [{**TWO["web"], "weight": 0}],
        [{**TWO["web"], "x": 1}],
    ):
        assert faults({"dataset.sources": sources})
        assert complaints(schema, changed({"dataset.sources": sources})) == ["dataset.sources: anyOf"]


def test_sources_of_a_preset_take_the_place_of_all_that_are_there(tmp_path: Path) -> None:
    assert NAMED == ("models", "dataset.sources", "sweep")
    over = overlay({"dataset": {"sources": {"a": {"weight": 1}}, "split": "x"}}, {"dataset": {"sources": {"b": {"weight": 2}}}})
    assert over == {"dataset": {"sources": {"b": {"weight": 2}}, "split": "x"}}
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump({"dataset": {"sources": TWO}}))
    assert apply_preset("mixed", ROOT / "params.yaml", tmp_path).dataset == read({"dataset.sources": TWO})
    words = flags({"dataset": {"split": "train", "sources": TWO}, "models": None})
    assert words[0::2] == ["-S"] * 4
    assert words[1::2] == [
        "dataset.split=train",
        "dataset.sources=null",
        "models=null",
        "dataset.sources={web:{dataset_name_or_path:web.jsonl,weight:3},chat:{dataset_name_or_path:c,messages_field:m}}",
    ]
    says(faults({"dataset.sources": "web"})["dataset.sources"], "a mapping of names", "null", "'web'")
