"""Contracts say who made them and from what: an altered byte, a swapped output and a replaced input are found by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.contracts.manifests import CheckedFiles, write_manifest
from pipeline.contracts.sealing import DIGEST, Origin, sealed, unsealed
from pipeline.errors import DataError
from tests.messages import says
from tests.project import Project
from tests.sealing import rewritten


def test_every_changed_value_of_a_sealed_file_is_found() -> None:
    about = {"a": 1, "b": {"c": [1.5, None]}, "d": "x"}
    written = sealed(about, Origin("norm", {"tokens": "12"}))
    values, origin = unsealed(json.loads(json.dumps(written)), Path("f"), "a thing", next_action="again")
    assert (values, origin.made_by, origin.made_from) == (about, "norm", {"tokens": "12"})
    for change in (
        {"a": 2},
        {"b": {"c": [1.5, 0]}},
        {"d": "y"},
        {"made_by": "train"},
        {"made_from": {}},
        {"e": None},
        {DIGEST: "0"},
    ):
        with pytest.raises(DataError, match=r"f: altered"):
            unsealed(written | change, Path("f"), "a thing", next_action="again")
    for damaged in ([], None, {}, {"a": 1}, about):
        with pytest.raises(DataError, match=r"f: not a thing"):
            unsealed(damaged, Path("f"), "a thing", next_action="again")


def test_files_are_compared_when_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("one.json", "inner/two", "inner/three"):
        (tmp_path / name).write_text(name)
    write_manifest(tmp_path, Origin("tokenize"))
    files = CheckedFiles(tmp_path, "it", "tokenize")
    files.check("inner/two")
    (tmp_path / "inner/two").write_text("inner/owt")  # it has been compared
    files.check("inner/two")
    (tmp_path / "inner/three").write_text("inner/eerht")
    with pytest.raises(DataError, match="inner/three: altered"):
        files.check("inner/three")
    with pytest.raises(DataError, match=r"inner/four: not in the directory's manifest\.json"):
        files.check("inner/four")
    with pytest.raises(DataError, match="inner/two: altered"):
        CheckedFiles(tmp_path, "it", "tokenize").check_all("two")
    (tmp_path / "one.json").write_text("longer than it was")
    with pytest.raises(DataError, match=r"one\.json: 18 bytes, 8 were written"):
        CheckedFiles(tmp_path, "it", "tokenize")
    (tmp_path / "one.json").unlink()
    with pytest.raises(DataError, match=r"one\.json: missing"):
        CheckedFiles(tmp_path, "it", "tokenize")


def test_an_origin_is_compared_with_what_is_there() -> None:
    made = Origin("train", {"norms": "1", "tokens": "2"})
    assert made.check(Path("d"), "train", {"norms": "1", "tokens": None, "model": "3"}) is made
    with pytest.raises(DataError, match=r"d: made by the stage train, wanted the output of fold"):
        made.check(Path("d"), "fold", {})
    with pytest.raises(DataError, match=r"d: made from other norms"):
        made.check(Path("d"), "train", {"norms": "9"})
    Origin().check(Path("d"), "fold", {"norms": "9"})  # made in Python


def flip(path: Path, at: int = 40) -> None:
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1
    path.write_bytes(content)


def digit(path: Path) -> None:
    """Another digit in the middle of a JSON file, so that it can still be read."""
    text = path.read_text()
    place = next(i for i in range(len(text) // 2, len(text)) if text[i].isdigit() and text[i - 1].isdigit())
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])


def swap(one: Path, other: Path) -> None:
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


def normalised(tokenizer: Path) -> None:
    """A tokenizer that reads other text."""
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"normalizer": {"type": "Lowercase"}}))


Damage = Callable[[Path], object]
CASES: dict[str, tuple[Damage, str, tuple[str, ...]]] = {
    "a chunk of tokens": (lambda d: flip(d / "tokens.zarr/eval/tokens/c/0/0"), "evaluate", ("tokens/c/0/0:", "altered")),
    "a chunk of tokens is lost": (lambda d: (d / "tokens.zarr/train/document_ids/c/0/0").unlink(), "evaluate", ("missing",)),
    "the tokens' description": (lambda d: digit(d / "tokens.zarr/zarr.json"), "generate_activations", ("zarr.json:", "altered")),
    "the tokens' manifest": (lambda d: digit(d / "tokens.zarr/manifest.json"), "generate_activations", ("manifest.json:",)),
    "splits swapped": (
        lambda d: swap(d / "tokens.zarr/train/tokens", d / "tokens.zarr/eval/tokens"), "evaluate", ("tokens",),
    ),
    "the manifest of activations": (lambda d: digit(d / "activations.json"), "compute_norm", ("activations.json:", "altered")),
    "norms": (lambda d: digit(d / "norms.json"), "initialize", ("norms.json:", "altered")),
    "norms in training": (lambda d: digit(d / "norms.json"), "train", ("norms.json:", "altered")),
    "statistics": (lambda d: flip(d / "norm_statistics.safetensors", -5), "evaluate", ("norm_statistics.safetensors:", "altered")),
    "an initial configuration": (lambda d: digit(d / "initial/main/config.json"), "train", ("config.json:", "altered")),
    "a trained configuration": (lambda d: digit(d / "trained/main/config.json"), "fold_norm", ("config.json:", "altered")),
    "an inference configuration": (lambda d: digit(d / "inference/main/config.json"), "evaluate", ("config.json:", "altered")),
    "initial and trained swapped": (lambda d: swap(d / "initial/main", d / "trained/main"), "train", ("train", "initialize")),
    "trained and inference swapped": (lambda d: swap(d / "trained/main", d / "inference/main"), "fold_norm", ("fold", "train")),
    "trained for inference": (
        lambda d: (shutil.rmtree(d / "inference/main"), shutil.copytree(d / "trained/main", d / "inference/main")),
        "evaluate",
        ("train", "fold"),
    ),
    "norms measured again": (
        lambda d: rewritten(d / "norms.json", lambda norms: next(iter(norms["hook_points"].values())).update(mean_norm=1.0)),
        "train",
        ("initial/main:", "norms"),
    ),
    "the model's weights": (lambda d: flip(d.parent / "model/model.safetensors", -9), "evaluate", ("inference/main:", "model")),
    "the model's tokenizer": (lambda d: normalised(d.parent / "model/tokenizer.json"), "generate_activations", ("tokenizer",)),
    "the tokenizer of the texts": (lambda d: normalised(d.parent / "model/tokenizer.json"), "analyze", ("tokens.zarr", "tokenizer")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_altered_or_swapped_is_refused(finished_project: Project, tmp_path: Path, case: str) -> None:
    damage, stage, parts = CASES[case]
    project = finished_project.copy(tmp_path / "copy")
    damage(project.path / "data")
    outcome = project.run(stage)
    assert outcome.exit_code == 2, outcome.stderr
    assert outcome.exception is None
    says(outcome.stderr, *parts)
