"""Places that cannot be written: said in one line, with the place and what to do, before the stage does its work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.files import ensure_writable, unwritable
from tests.messages import between_ends, saying, says
from tests.permissions import read_only
from tests.project import STAGES, Outcome, Project

STORE = "SCOPELINE_STORE"


def refused(outcome: Outcome, *parts: object) -> None:
    """One error line and exit code 2; nothing of the work was begun, of which a progress line would tell."""
    if outcome.exception is not None:
        raise outcome.exception
    assert outcome.exit_code == 2, outcome.stderr
    (line,) = between_ends(outcome.stderr)
    assert line.startswith("error: ")
    says(line, *parts)


def inodes(project: Project) -> dict[str, int]:
    return {str(path): path.lstat().st_ino for path in project.path.rglob("*")}


def a_file(place: Path) -> Path:
    place.write_text("")
    return place


def below_a_file(place: Path) -> Path:
    return a_file(place) / "below" / "it"


def a_dangling_link(place: Path) -> Path:
    place.symlink_to(place.parent / "nothing")
    return place


def a_loop(place: Path) -> Path:
    place.symlink_to(place)
    return place / "below"


KINDS: list[tuple[Callable[[Path], Path], str]] = [
    (a_file, "is a file"),
    (below_a_file, "is a file"),
    (a_dangling_link, "leads nowhere"),
    (a_loop, "leads nowhere"),
    (lambda _: Path("/proc/self/store"), "/proc/self"),
]


@pytest.mark.parametrize(("make", "part"), KINDS)
def test_what_cannot_become_a_directory(tmp_path: Path, make: Callable[[Path], Path], part: str) -> None:
    place = make(tmp_path / "place")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=saying(f"{place}:", "tables", part, "go elsewhere")):
        ensure_writable(place, "tables", "go elsewhere")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_can_is_left_as_it_was(tmp_path: Path) -> None:
    assert unwritable(tmp_path / "new" / "newer") is None
    assert unwritable(tmp_path) is None
    (tmp_path / "link").symlink_to(tmp_path)
    assert unwritable(tmp_path / "link" / "new") is None
    assert [path.name for path in tmp_path.iterdir()] == ["link"]
    with read_only(tmp_path):
        says(unwritable(tmp_path / "new" / "newer"), tmp_path, "Permission denied")


@pytest.mark.parametrize(("make", "part"), KINDS)
@pytest.mark.parametrize("stage", ["generate_activations", "train"])
def test_a_store_root_that_is_none(
    project: Project, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path], part: str, stage: str
) -> None:
    place = make(project.path / "place")
    monkeypatch.setenv(STORE, str(place))
    refused(project.run(stage), f"{place}:", part, STORE)


def test_a_relative_store_root_is_of_the_checkout(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a queued experiment has it, whose working directory is another one."""
    shutil.move(project.path / "data" / "store", tmp_path / "stores")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv(STORE, "stores")
    assert project.run("compute_norm").exit_code == 0


def test_a_whole_store_that_cannot_be_written_is_complete(project: Project) -> None:
    before = (project.path / "data" / "activations.json").read_bytes()
    (project.path / "data" / "store" / f"{project.store.name}.lock").unlink()
    with read_only(project.store.parent, project.store):
        outcome = project.run("generate_activations")
    assert (outcome.exit_code, between_ends(outcome.stderr)) == (0, [])
    assert (project.path / "data" / "activations.json").read_bytes() == before
    assert not list(project.store.parent.glob("*.lock"))


def test_a_store_that_is_not_whole_and_cannot_be_written(project: Project) -> None:
    chunk = next(project.store.glob("blocks*/c.0.0"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with read_only(project.store.parent, project.store):
        refused(project.run("generate_activations"), f"{project.store}:", "damaged", "chunk 0", "Permission denied", STORE)
    shutil.rmtree(project.store)
    with read_only(project.path / "data" / "store"):
        refused(project.run("generate_activations"), "not there", "Permission denied", STORE)


WRITING = {
    "data": [stage for stage in ("inputs", *STAGES) if stage != "evaluate"],
    "metrics": [stage for stage in STAGES if stage not in ("initialize", "analyze")],
}


@pytest.mark.parametrize(("folder", "stage"), [(folder, stage) for folder, stages in WRITING.items() for stage in stages])
def test_read_only_outputs(project: Project, stage: str, folder: str) -> None:
    before = inodes(project)
    with read_only(project.path / folder):
        refused(project.run(stage), project.path / folder, "Permission denied", "writable")
    assert inodes(project) == before


@pytest.mark.parametrize("stage", ["train", "analyze"])
def test_read_only_checkpoints(project: Project, stage: str) -> None:
    place = project.path / "data" / "checkpoints"
    with read_only(place):
        refused(project.run(stage), f"{place}:", "Permission denied", "writable")


def test_a_directory_in_the_place_of_a_file(project: Project) -> None:
    (project.path / "metrics" / "fold.json").unlink()
    (project.path / "metrics" / "fold.json").mkdir()
    refused(project.run("fold_norm"), "metrics/fold.json:", "directory", "move it away")


@pytest.mark.parametrize("stage", ["inputs", "tokenize_corpus", "train"])
def test_outputs_outside_of_the_repository(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """DVC refuses them after the stage; alone, a stage writes where the link leads."""
    shutil.move(project.path / "data", tmp_path / "large disk")
    (project.path / "data").symlink_to(tmp_path / "large disk")
    assert project.run("inputs").exit_code == 0
    monkeypatch.setenv("DVC_ROOT", str(project.path))
    refused(project.run(stage), tmp_path / "large disk", "outside", project.path, "symbolic link", STORE)


LONG = "a" * 300


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("inputs", "dataset__dataset_name_or_path"),
        ("tokenize_corpus", "dataset__dataset_name_or_path"),
        ("tokenize_corpus", "model__model_name"),
        ("generate_activations", "model__model_name"),
        ("generate_activations", "activations__path"),
        ("generate_activations", STORE),
        ("fold_norm", "--params"),
    ],
)
def test_a_name_longer_than_any_file_can_have(
    project: Project, stage: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set or model of this name is none that is here; a place of this name is none."""
    arguments = []
    if key == STORE:
        monkeypatch.setenv(STORE, str(tmp_path / LONG))
    elif key == "--params":
        arguments = ["--params", LONG]
    else:
        project.set(**{key: LONG})
    outcome = project.run(stage, *arguments)
    if (stage, key) == ("inputs", "dataset__dataset_name_or_path"):
        assert outcome.exit_code == 0, outcome.stderr  # it may be one of the hub
        return
    lines = outcome.stderr.splitlines()
    assert outcome.exit_code == 2, outcome.stderr
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert LONG[:100] in lines[-1]
