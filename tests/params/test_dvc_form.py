"""params.yaml in the form in which DVC leaves it: `dvc exp run -S` of a key changes what stands at that key."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import dumps_yaml
from dvc.utils.serialize._yaml import parse_yaml_for_update

from pipeline.params.documents.comments import commented
from pipeline.params.reading import read_mapping
from pipeline.params.schema import flatten
from tests.project import REPOSITORY

TEXT = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")


def changes(before: str, after: str) -> tuple[list[str], list[str]]:
    """Lines that have gone, and lines that have come."""
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0))[2:]
    return [line[1:] for line in lines if line[0] == "-"], [line[1:] for line in lines if line[0] == "+"]


def test_dvc_writes_the_file_as_it_is() -> None:
    assert dumps_yaml(parse_yaml_for_update(TEXT, "params.yaml")) == TEXT


@pytest.mark.parametrize(
    ("key", "said", "value"),
    [
        ("trainer.lr", "2e-4", 2e-4),  # from a word to a number
        ("trainer.l1_coefficient", "0.5", 0.5),
        ("model.revision", "step1000", "step1000"),  # from null
        ("activations.max_norm_factor", "null", None),  # to null
        ("activations.buffer_shuffle.perm_seed", "7", 7),
        ("tracking.enabled", "false", False),
    ],
)
def test_an_override_changes_one_line(tmp_path: Path, key: str, said: str, value: object) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(TEXT)
    apply_overrides(str(path), [f"{key}={said}"])
    (gone,), (come,) = changes(TEXT, path.read_text())
    assert gone.split(":")[0].strip() == key.rpartition(".")[2]
    assert gone.partition(" # ")[::2][1] == come.partition(" # ")[::2][1]  # the comment stays
    assert gone.index(" # ") == come.index(" # ")
    wanted = dict(flatten(read_mapping(REPOSITORY / "params.yaml"))) | {key: value}
    assert dict(flatten(read_mapping(path))) == wanted
    assert changes(path.read_text(), commented(path.read_text())) == ([], [])


def test_an_override_of_a_list_changes_its_items(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(TEXT)
    apply_overrides(
        str(path), ["trainer.betas=[0.9,0.999]", "sweep={a:{dictionary.top_k:3}}", "activations.hook_points=[a.b,c]"]
    )
    gone, come = changes(TEXT, path.read_text())
    assert gone == ["  - 0.5", "  - 0.99"]
    assert sorted(come) == sorted(["  - 0.9", "  - 0.999", "  a:", "    dictionary.top_k: 3", "  - a.b", "  - c"])


def test_nine_overrides_change_nine_lines_and_back_again_none(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(TEXT)
    keys = ["seed", "dictionary.top_k", "trainer.total_training_tokens", "activations.total_tokens", "evaluation.tokens",
            "analysis.tokens", "norm.tokens", "dataset.split_seed", "fold.calibration_tokens"]  # fmt: skip
    apply_overrides(str(path), [f"{key}=8" for key in keys])
    gone, come = changes(TEXT, path.read_text())
    assert len(gone) == len(come) == len(keys)
    default = dict(flatten(read_mapping(REPOSITORY / "params.yaml")))
    apply_overrides(str(path), [f"{key}={'null' if default[key] is None else default[key]}" for key in keys])
    assert path.read_text() == TEXT


def test_null_is_written_as_nothing_and_a_list_below_its_key() -> None:
    text = "a:\n  b: null # old\n  c: ~\n  d: word\n  e: [0.5, x: 1]\n  f: [0.50, 'x']\n  g: []\nh: {i: null}\nj: null\nk: # said\n  - 1\n"
    assert [line.rstrip() for line in commented(text).splitlines()] == [
        "a:", "  b: # old", "  c:", "  d: word", "  e: [0.5, x: 1]", "  f:", "  - 0.50", "  - 'x'", "  g: []", "h: {i: null}", "j:", "k: # said",
        "  - 1",
    ]  # fmt: skip
