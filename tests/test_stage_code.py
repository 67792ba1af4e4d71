"""The code that made a result: dvc.yaml names all of it for every stage and little else, and its digest tells codes apart."""

from __future__ import annotations

import builtins
import importlib
import shutil
import typing
from pathlib import Path

import pytest

from pipeline import stage_code
from pipeline.analysis.analyze import NOT_THE_PASS
from pipeline.stage_code import code_files, code_of
from pipeline.training.fingerprint import NOT_WEIGHTS
from tests.closure import (
    NO_RESULT,
    ROOT,
    closure,
    counts,
    covers,
    imported_names,
    load_yaml,
    sources,
    stage_scripts,
    undeclared,
)

SCRIPTS = stage_scripts(load_yaml("dvc.yaml"))


@pytest.mark.parametrize("stage", SCRIPTS)
def test_deps_hold_all_that_the_stage_imports(stage: str) -> None:
    """Else DVC skips the stage in silence after an edit. Whatever the parameters say: every kind, gate and loss counts."""
    assert undeclared(SCRIPTS[stage], code_of(stage)) == [], f"add their folders to the deps of {stage} in dvc.yaml"


@pytest.mark.parametrize("stage", SCRIPTS)
def test_deps_name_nothing_that_the_stage_does_not_import(stage: str) -> None:
    """Else an unrelated edit runs the stage again."""
    needed = {path for path in closure(SCRIPTS[stage]) if counts(path)}
    assert [place for place in code_of(stage) if not any(covers(place, path) for path in needed)] == []


@pytest.mark.parametrize("stage", SCRIPTS)
def test_deps_are_folders_and_modules_of_pipeline_and_the_script(stage: str) -> None:
    places = code_of(stage)
    assert [place for place in places if not (ROOT / place).exists()] == []
    assert [place for place in places if place.count("/") != 1 or any(covers(place, path) for path in NO_RESULT)] == []
    assert [place for place in places if place.startswith("stages/")] == [SCRIPTS[stage]]
    assert len(set(places)) == len(places)


def test_every_stage_script_is_in_the_pipeline_or_runs_beside_it() -> None:
    beside = {"plan", "pretrain", "preset", "report", "inspect", "interpret", "export", "import_dictionary", "installed"}
    beside |= {"saebench", "sparse_probing", "ground_truth"}
    scripts = {path for path in sources("stages") if Path(path).stem not in {"__init__", *beside}}
    assert scripts == set(SCRIPTS.values())


def test_what_changes_no_result_is_there_and_some_stage_imports_it() -> None:
    imported = {path for script in SCRIPTS.values() for path in closure(script)}
    assert [place for place in NO_RESULT if not any(covers(place, path) for path in imported)] == []


def test_what_gives_a_stage_nothing_returns_nothing() -> None:
    """The functions of pipeline.planning that stages of dvc.yaml call have no value that could go into an output."""
    called = {
        "pipeline.planning.beginning": ("begin", "begin_tokenize", "begin_training", "end_tokenize"),
        "pipeline.planning.refusals": ("refuse",),
    }
    allowed = {name for names in called.values() for name in names} | {"PARAMETERS", "TOKENS"}
    for script in SCRIPTS.values():
        names = [each for each, _, _ in imported_names(script) if each[-1].startswith("pipeline.planning")]
        assert [name for name, *_ in names if name.rpartition(".")[2] not in allowed] == [], script
    for module, functions in called.items():
        for function in functions:
            assert typing.get_type_hints(getattr(importlib.import_module(module), function), {}, _Names())["return"] is type(
                None
            )


class _Names(dict):  # type: ignore[type-arg]
    """Built-in types, and whatever else an annotation names for type checkers alone."""

    def __missing__(self, name: str) -> object:
        return getattr(builtins, name, object)


def test_what_is_imported_by_name_or_inside_a_function_is_missed_when_it_is_not_declared() -> None:
    missing = {line.split()[0] for line in undeclared("stages/train.py", ("pipeline/training", "stages/train.py"))}
    assert {"pipeline/losses/sparsity/tanh_quad.py", "pipeline/dictionaries/lorsa.py", "pipeline/seeding.py"} <= missing
    assert "pipeline/dictionaries/store.py" in missing  # base.py imports it inside a function
    assert not {path for path in missing if path.startswith(("pipeline/params", "pipeline/training", "pipeline/evaluation"))}
    (line,) = [line for line in undeclared("stages/train.py", ()) if line.startswith("pipeline/training/session.py ")]
    assert line.startswith("pipeline/training/session.py (imported by stages/train.py:")


STEP = (
    "training/loop",
    "dictionaries/build",
    "training/source",
    "opening",
    "activations/reader",
    "losses/sparsity_losses",
    "norms/normalizer",
)
PASS = ("analysis/collection", "analysis/loading", "evaluation/split_tokens", "evaluation/models", "evaluation/raw_space")


@pytest.mark.parametrize(
    ("stage", "modules", "without"), [("train", STEP, NOT_WEIGHTS), ("analyze", PASS, NOT_THE_PASS)], ids=["step", "pass"]
)
def test_what_a_stage_keeps_carries_all_the_code_that_made_it(
    stage: str, modules: tuple[str, ...], without: tuple[str, ...]
) -> None:
    """A checkpoint all that a step runs, the state of a pass all that it runs; what is left out is part of the stage."""
    needed = {path for module in modules for path in closure(f"pipeline/{module}.py") if counts(path)}
    assert {"pipeline/dictionaries/lorsa.py", "pipeline/seeding.py", "pipeline/norms/exclusion.py"} <= needed
    assert needed - set(code_files(stage, without)) == set()
    assert [place for place in without if not any(covers(place, path) for path in code_files(stage))] == []


def _write(place: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)


FILES = {
    "dvc.yaml": "stages:\n  train:\n    deps:\n    - data/x\n    - pipeline/a\n    - pipeline/b.py\n    - stages/train.py\n",
    "pipeline/a/one.py": "x = 1\ny = 2\n",
    "pipeline/a/inner/two.js": "z\n",
    "pipeline/ab.py": "not a\n",
    "pipeline/b.py": "b\n",
    "pipeline/params/fields.py": "c\n",
    "stages/train.py": "d\n",
}
TRAIN = ["pipeline/a/inner/two.js", "pipeline/a/one.py", "pipeline/b.py", "stages/train.py"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stage_code, "CHECKOUT", tmp_path)
    _write(tmp_path, FILES)
    return tmp_path


def digest(without: tuple[str, ...] = ()) -> str:
    """As another process would find it."""
    stage_code.code_digest.cache_clear()
    try:
        return stage_code.code_digest("train", without)
    finally:
        stage_code.code_digest.cache_clear()


def test_the_files_of_a_stage(checkout: Path) -> None:
    assert code_of("train") == ("pipeline/a", "pipeline/b.py", "stages/train.py")
    assert code_files("train") == TRAIN
    assert code_files("train", ("pipeline/a/inner", "stages")) == TRAIN[1:3]


@pytest.mark.parametrize(
    "changes",
    [
        {"pipeline/a/one.py": "x = 1\ny = 3\n"},
        {"pipeline/a/one.py": "x = 1\ny = 2\n\n"},
        {"pipeline/a/inner/two.js": ""},
        {"pipeline/a/inner/three.py": ""},
        {"stages/train.py": "e\n"},
        {"pipeline/a/one.py": "x = 1\n", "pipeline/b.py": "y = 2\nb\n"},
    ],
)
def test_the_digest_depends_on_every_file_of_the_stage(checkout: Path, changes: dict[str, str]) -> None:
    before = digest()
    _write(checkout, changes)
    assert digest() != before


def test_the_digest_depends_on_where_a_file_is_and_whether_it_is_there(checkout: Path) -> None:
    found = [digest()]
    (checkout / "pipeline/a/one.py").rename(checkout / "pipeline/a/inner/one.py")
    found.append(digest())
    (checkout / "pipeline/a/inner/one.py").unlink()
    found.append(digest())
    assert len(set(found)) == 3


def test_the_digest_depends_on_nothing_else(checkout: Path) -> None:
    """Not on caches, hidden files, other modules, line endings, or the order in which files were made."""
    before, inner = digest(), digest(("stages", "pipeline/b.py"))
    _write(
        checkout,
        {
            "pipeline/a/__pycache__/one.cpython-311.pyc": "1",
            "pipeline/a/inner/__pycache__/left.py": "1",
            "pipeline/a/one.pyc": "1",
            "pipeline/a/.one.py.swp": "1",
            "pipeline/a/.idea/one.py": "1",
            "pipeline/params/fields.py": "other\n",
            "pipeline/ab.py": "other\n",
            "data/x": "other\n",
        },
    )
    assert digest() == before
    _write(checkout, {"stages/train.py": "other\n"})
    assert digest() != before
    assert digest(("stages", "pipeline/b.py")) == inner
    for place in ("pipeline", "stages"):
        shutil.rmtree(checkout / place)
    _write(checkout, dict(reversed(FILES.items())))
    for name in TRAIN:
        (checkout / name).write_bytes((checkout / name).read_bytes().replace(b"\n", b"\r\n"))
    assert digest() == before


@pytest.mark.parametrize("text", [None, "stages: [", "stages:\n  other:\n    deps: []\n", "", "- 1\n"])
def test_where_dvc_yaml_does_not_say_all_code_counts(checkout: Path, text: str | None) -> None:
    if text is None:
        (checkout / "dvc.yaml").unlink()
    else:
        (checkout / "dvc.yaml").write_text(text)
    assert code_files("train") == sorted(name for name in FILES if name.startswith("pipeline/"))
