"""The stage inputs: what lies under a name is another one as soon as its content is, and DVC runs what reads it again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import yaml
from safetensors.torch import load_file, save_file

from pipeline.digests import FileDigests
from pipeline.lm import source
from tests.closure import load_yaml
from tests.lm.conftest import CONFIGURATIONS
from tests.lm.families import write_model
from tests.lm.gguf_files import write_gguf
from tests.messages import says
from tests.project import REPOSITORY, Project, make_project


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with texts in every local form."""
    project = make_project(tmp_path_factory.mktemp("inputs") / "project")
    text = (project.path / "text.jsonl").read_text()
    for folder in ("texts", "other"):
        (project.path / folder).mkdir()
        (project.path / folder / "a.jsonl").write_text(text)
    (project.path / "texts" / "test.jsonl").write_text("{}")
    (project.path / "texts" / "train.jsonl").write_text(text)
    (project.path / "link").symlink_to("texts")
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(project.path / "saved")
    return project


@pytest.fixture
def project(made: Project, tmp_path: Path) -> Project:
    subprocess.run(["cp", "-a", str(made.path), str(tmp_path / "project")], check=True)
    return Project(tmp_path / "project", json.loads(json.dumps(made.params)))


def contents(project: Project) -> tuple[str, str]:
    """(of the text, of the models), as the stage writes them."""
    outcome = project.run("inputs")
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    return tuple((project.path / "data" / "inputs" / name).read_text() for name in ("text.json", "models.json"))  # type: ignore[return-value]


def same_size(path: Path) -> None:
    """Other content of the same size and modification time."""
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"cat", b"tac"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def retarget(path: Path) -> None:
    path.unlink()
    path.symlink_to("other")


def other_weights(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    weights["gpt_neox.embed_in.weight"] *= 1.5
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def other_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").write_text((path / "tokenizer.json").read_text() + " ")


def appended(path: Path) -> None:
    path.write_text(path.read_text() + '{"text": "more"}\n')


TEXT, MODEL, NOTHING = (True, False), (False, True), (False, False)
CHANGES: list[tuple[str, str, Callable[[Path], None], tuple[bool, bool]]] = [
    ("text.jsonl", "text.jsonl", same_size, TEXT),
    ("text.jsonl", "text.jsonl", appended, TEXT),
    ("text.jsonl", "text.jsonl", Path.touch, NOTHING),
    ("texts", "texts/train.jsonl", same_size, TEXT),
    ("texts", "texts/train.2.jsonl", lambda path: path.write_text('{"text": "a"}') and None, TEXT),
    ("texts", "texts/train.jsonl", lambda path: path.rename(path.with_name("train-1.jsonl")) and None, TEXT),
    ("texts", "texts/test.jsonl", appended, NOTHING),
    ("texts", "texts/notes.md", Path.touch, NOTHING),
    ("link", "link", retarget, TEXT),
    ("link", "texts/train.jsonl", same_size, TEXT),
    ("saved", "saved/state.json", lambda path: path.write_text(path.read_text() + " ") and None, TEXT),
    ("text.jsonl", "model", other_weights, MODEL),
    ("text.jsonl", "model", other_tokenizer, MODEL),
    ("text.jsonl", "model/pytorch_model.bin", Path.touch, NOTHING),
]


@pytest.mark.parametrize(("name", "place", "change", "changed"), CHANGES)
def test_contents_change_with_what_is_read(
    project: Project, name: str, place: str, change: Callable[[Path], None], changed: tuple[bool, bool]
) -> None:
    project.set(dataset__dataset_name_or_path=name)
    before = contents(project)
    change(project.path / place)
    after = contents(project)
    assert tuple(old != new for old, new in zip(before, after, strict=True)) == changed
    assert all(str(project.path) not in text for text in after)


def test_further_models_count(project: Project) -> None:
    hooks = ["blocks.0.hook_resid_post", "other:blocks.0.hook_resid_post"]
    project.set(models={"other": {"model_name": "model", "revision": None}}, dictionary__kind="crosscoder")
    project.set(dictionary__hook_point_in=None, dictionary__hook_points_in=hooks, dictionary__apply_b_dec_to_input=False)
    before = contents(project)
    assert set(json.loads(before[1])) == {"model", "models.other"}
    other_weights(project.path / "model")
    assert contents(project)[1] != before[1]


def test_what_is_on_the_hub_is_told_by_its_revision(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = {None: "1234", "v1": "5678"}
    monkeypatch.setattr(source, "_hub_config", lambda name, revision: (project.path / "model", commits[revision]))
    project.set(model__model_name="someone/model", dataset__dataset_name_or_path="someone/text")
    before = contents(project)
    assert json.loads(before[1]) == {"model": {"name": "someone/model", "commit": "1234"}}
    project.set(model__revision="v1")
    assert json.loads(contents(project)[1])["model"]["commit"] == "5678"
    project.set(dataset__revision="v2")
    assert json.loads(contents(project)[0]) == {"name": "someone/text", "revision": "v2"}


def test_the_dictionary_to_start_from_is_told_by_its_files(project: Project) -> None:
    def told() -> str:
        contents(project)
        return (project.path / "data" / "inputs" / "dictionary.json").read_text()

    assert json.loads(told()) == {"from": None}
    (project.path / "base").mkdir()
    for name in ("config.json", "weights.safetensors"):
        (project.path / "base" / name).write_text("cat")
    project.set(initializer__from_dictionary="base")
    before, others = told(), contents(project)
    assert json.loads(before)["from"]["files"] == 2
    (project.path / "base" / "config.json").touch()
    assert told() == before
    for name in ("config.json", "weights.safetensors"):
        same_size(project.path / "base" / name)
        changed, before = told() != before, told()
        assert changed, name
    project.set(initializer__from_dictionary="base/weights.safetensors")
    assert json.loads(told())["from"]["files"] == 1
    assert contents(project) == others
    project.set(initializer__from_dictionary="gone")
    outcome = project.run("inputs")
    assert outcome.exit_code == 2
    assert "error: initializer.from_dictionary: gone: no such directory; give one with config.json" in outcome.stderr


def test_a_text_that_is_not_there(project: Project) -> None:
    project.set(dataset__dataset_name_or_path="./gone")
    outcome = project.run("inputs")
    assert outcome.exit_code == 2
    assert "./gone: dataset.dataset_name_or_path: no such file or directory (looked in " in outcome.stderr


def test_the_embedded_default_is_always_the_same(project: Project) -> None:
    """What it is made of are other dependencies and parameters."""
    project.set(dataset__dataset_name_or_path="demo", model__model_name="demo")
    (project.path / "data" / "demo").mkdir(parents=True)
    (project.path / "model").rename(project.path / "data" / "demo" / "model")
    before = contents(project)
    other_weights(project.path / "data" / "demo" / "model")
    assert contents(project) == before


def test_a_file_that_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, memory = tmp_path / "a", tmp_path / "memory.json"
    file.write_text("a")

    def digest() -> str:
        digests = FileDigests(memory)
        found = digests.of(file)
        digests.remember()
        return found

    right = digest()
    assert json.loads(memory.read_text()) == {}  # it may be written again within the clock's tick
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 10**10)
    assert digest() == right
    memory.write_text(memory.read_text().replace(right, "remembered"))
    assert digest() == "remembered"
    file.write_text("b")
    assert digest() not in (right, "remembered")
    for damaged in ("{", "[1]", "[]", '{"' + str(file) + '": 7}'):
        memory.write_text(damaged)
        file.write_text("a")
        assert digest() == right


def test_every_stage_that_reads_text_or_models_depends_on_them() -> None:
    stages = load_yaml("dvc.yaml")["stages"]
    assert stages["inputs"]["always_changed"] is True
    models = {name for name, stage in stages.items() if "data/demo/model" in stage["deps"]}
    assert models == {"tokenize", "generate", "norm", "initialize", "evaluate", "analyze"}
    assert {name for name, stage in stages.items() if "data/inputs/models.json" in stage["deps"]} == models
    assert [name for name, stage in stages.items() if "data/inputs/text.json" in stage["deps"]] == ["tokenize"]
    assert [name for name, stage in stages.items() if "data/inputs/dictionary.json" in stage["deps"]] == ["initialize"]


def test_dvc_notices(project: Project) -> None:
    """With the stage of dvc.yaml, and one behind it that counts how often it runs."""
    inputs = load_yaml("dvc.yaml")["stages"]["inputs"]
    del inputs["deps"]
    counting = {"cmd": "echo run >> runs", "deps": list(inputs["outs"])}
    (project.path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"inputs": inputs, "counting": counting}}))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    alone = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": path, "DVC_NO_ANALYTICS": "1"}

    def dvc(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *arguments, "-q"], cwd=project.path, check=True, env=alone)

    dvc("init", "--no-scm")
    runs = []
    for change in (lambda: None, lambda: None, lambda: same_size(project.path / "text.jsonl"), lambda: None):
        change()
        dvc("repro")
        runs.append(len((project.path / "runs").read_text().splitlines()))
    assert runs == [1, 1, 2, 2]


@pytest.fixture
def with_file(project: Project, tmp_path: Path) -> Project:
    """A GGUF file as the model, and a tokenizer of another place."""
    write_model(tmp_path / "llama", *CONFIGURATIONS["llama"])
    write_gguf(tmp_path / "llama", project.path / "own.gguf")
    (project.path / "words").mkdir()
    for file in (tmp_path / "llama").glob("tokenizer*"):
        shutil.copy(file, project.path / "words")
    return project.set(model__model_name="own.gguf")


def other_byte(path: Path) -> None:
    """Of the last tensor, with the same size and modification time."""
    before = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_gguf_file_counts_by_its_content(with_file: Project) -> None:
    before = contents(with_file)
    (with_file.path / "beside.safetensors").touch()
    (with_file.path / "own.gguf").touch()
    assert contents(with_file) == before
    (with_file.path / "own.gguf").rename(with_file.path / "renamed.gguf")
    assert contents(with_file.set(model__model_name="renamed.gguf")) == before
    other_byte(with_file.path / "renamed.gguf")
    assert contents(with_file)[1] != before[1]
    assert contents(with_file)[0] == before[0]


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_tokenizer_of_another_place_counts(with_file: Project, kind: str) -> None:
    without = contents(with_file)
    name = "words"
    if kind == "file":
        name = "words.gguf"
        shutil.copy(with_file.path / "own.gguf", with_file.path / name)
    before = contents(with_file.set(model__tokenizer_name=name))
    assert before[1] != without[1]
    other_tokenizer(with_file.path / name) if kind == "directory" else other_byte(with_file.path / name)
    after = contents(with_file)
    assert (after[0], after[1] != before[1]) == (before[0], True)
    assert json.loads(after[1])["model"]["sha256"] == json.loads(before[1])["model"]["sha256"]


def test_a_gguf_file_that_is_damaged_or_gone(with_file: Project) -> None:
    content = (with_file.path / "own.gguf").read_bytes()
    (with_file.path / "own.gguf").write_bytes(content[: len(content) // 2])
    outcome = with_file.run("inputs")
    assert outcome.exit_code == 2
    says(outcome.stderr, "own.gguf:", "cut short")
    (with_file.path / "own.gguf").unlink()
    says(with_file.run("inputs").stderr, "own.gguf:", "no such GGUF file")


def test_what_lies_under_the_names_is_said(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each, also of the same content in two places."""
    shutil.copytree(project.path / "model", project.path / "twin")
    hooks = ["blocks.0.hook_resid_post", "other:blocks.0.hook_resid_post"]
    project.set(models={"other": {"model_name": "twin", "revision": None}}, dictionary__kind="crosscoder")
    project.set(dictionary__hook_point_in=None, dictionary__hook_points_in=hooks, dictionary__apply_b_dec_to_input=False)
    text, model, other, _ = project.run("inputs").stderr.splitlines()
    digest = {name: json.loads(contents(project)[at])[name]["sha256"] for at, name in ((1, "model"),)}
    size = (project.path / "text.jsonl").stat().st_size
    assert text.startswith(f"inputs: text: text.jsonl, 1 file, {size:,} bytes, sha256 ")
    files = [file for file in (project.path / "model").iterdir() if file.suffix in (".json", ".safetensors")]
    n_bytes = sum(file.stat().st_size for file in files)
    for line, alias, name in ((model, "model", "model"), (other, "models.other", "twin")):
        assert line == f"inputs: {alias}: {name}, {len(files)} files, {n_bytes:,} bytes, sha256 {digest['model'][:12]}"


def test_what_is_embedded_or_on_the_hub_is_said() -> None:
    digests = FileDigests(Path("nowhere"))
    named = {"text": {"name": "demo", "revision": None}, "a": {"b": {"name": "x/y", "commit": "12"}}, "from": {"": None}}
    assert list(digests.lines("", named)) == ["text: demo, the embedded one", "a b: x/y, on the hub, revision 12"]
