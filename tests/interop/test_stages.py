"""export and import_dictionary through the stages: an imported dictionary lies where a trained one does and is taken as one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.dictionaries.store import load_dictionary
from tests.interop import cases
from tests.messages import says
from tests.project import D_MODEL, Project


@pytest.mark.parametrize("format", ["saelens", "sparsify", "dictionary_learning", "openmoss"])
def test_out_and_in_again_evaluates_the_same(format: str, project: Project) -> None:
    outcome = project.run("export", "--format", format)
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    outcome = project.run("import_dictionary", f"data/export/{format}/main", "--name", "back")
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    ours, back = (load_dictionary(project.path / "data" / "inference" / name) for name in ("main", "back"))
    assert (back.config.name, back.hooks_in) == ("back", ours.hooks_in)
    if format != "saelens":
        return
    before = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    project.set(dictionary__name="back")
    for stage in ("evaluate", "analyze"):
        outcome = project.run(stage)
        assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    after = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    for key in ("fvu", "l0_mean", "delta_ce"):
        assert after[key] == pytest.approx(before[key], rel=1e-4)
    outcome = project.run("inspect", "--text", "the cat sat on the mat")
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    shutil.copytree(project.path / "data" / "inference" / "back", project.path / "base")
    project.set(dictionary__name="tuned", initializer__from_dictionary="base")
    outcome = project.run("initialize")
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    assert "computes the same" in outcome.stderr


def test_a_place_that_cannot_be_written_is_refused(project: Project) -> None:
    (project.path / "notes.txt").write_text("")
    for format, to in (("saelens", "notes.txt"), ("sparsify", "notes.txt/folder"), ("neuronpedia", "notes.txt")):
        outcome = project.run("export", "--format", format, "--to", str(project.path / to))
        assert outcome.exit_code == 2
        (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
        assert "notes.txt is a file" in line
        assert "--to" in line


def test_what_others_trained_is_judged(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained one: its L0 is at most its k, its error is measured."""
    monkeypatch.setattr(cases, "D", D_MODEL)
    cases.sparsify(project.path / "theirs" / "layers.0", d_in=D_MODEL)
    outcome = project.run("import_dictionary", "theirs", "--name", "theirs")
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    project.set(dictionary__name="theirs")
    outcome = project.run("evaluate")
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    metrics = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    assert metrics["l0_mean"] <= cases.K + 1e-6
    assert metrics["fvu"] > 0


def test_a_dictionary_of_another_width_or_hook_point_is_refused(project: Project) -> None:
    cases.sparsify(project.path / "theirs" / "layers.0")
    outcome = project.run("import_dictionary", "theirs")
    says(outcome.stderr, "blocks.0.hook_resid_post", "width is 6", D_MODEL, "model.model_name")
    assert outcome.exit_code == 2
    cases.sparsify(project.path / "deep" / "layers.7")
    outcome = project.run("import_dictionary", "deep")
    says(outcome.stderr, "blocks.7.hook_resid_post", "layer 7 does not exist", "--hook-point-in")
    assert outcome.exit_code == 2
    assert not (project.path / "data" / "inference" / "imported").exists()
    outcome = project.run("import_dictionary", "deep", "--any-model")
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception


def test_files_that_name_no_hook_point_or_model_are_told(project: Project) -> None:
    cases.sparsify(project.path / "theirs" / "elsewhere")
    outcome = project.run("import_dictionary", "theirs/elsewhere")
    assert outcome.exit_code == 2
    assert outcome.stderr.count("\n") == 1
    says(outcome.stderr, "theirs/elsewhere: its files name no hook point that is known here", "--hook-point-in")
    outcome = project.run("import_dictionary", "theirs/elsewhere", "--hook-point-in", "blocks.77.hook_resid_post")
    assert outcome.exit_code == 2
    says(outcome.stderr, "theirs/elsewhere: unknown hook point 'blocks.77.hook_resid_post'", "set model.model_name")
    assert "None" not in outcome.stderr
    assert not (project.path / "data" / "inference" / "imported").exists()


def test_a_store_without_the_hook_point_is_said(project: Project) -> None:
    cases.sparsify(project.path / "theirs" / "layers.1")
    assert project.run("import_dictionary", "theirs", "--name", "other", "--any-model").exit_code == 0
    outcome = project.run("export", "--format", "saelens", "--dictionary", "data/inference/other")
    assert outcome.exit_code == 2
    says(outcome.stderr, "blocks.1.hook_resid_post", "--activations", "--drawn")
    outcome = project.run("export", "--format", "saelens", "--dictionary", "data/inference/other", "--drawn", "--to", "out")
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    assert (project.path / "out" / "cfg.json").exists()


def test_what_auto_has_chosen_is_said_where_the_tokens_are_at_hand(project: Project) -> None:
    """model.prepend_bos is auto, and this tokenizer puts nothing before a text."""
    tokens = project.path / "data" / "tokens.zarr"

    def stated(to: str, *options: str) -> dict[str, object]:
        outcome = project.run("export", "--format", "saelens", "--to", to, *options)
        assert outcome.exit_code == 0, outcome.stderr or outcome.exception
        metadata: dict[str, object] = json.loads((project.path / to / "cfg.json").read_text())["metadata"]
        return metadata

    assert stated("known")["prepend_bos"] is False
    assert "prepend_bos" not in stated("drawn", "--drawn")  # no store that the tokens could be compared with
    project.set(dataset__eval_fraction=0.3)
    assert project.run("tokenize_corpus").exit_code == 0
    assert "prepend_bos" not in stated("other")  # the activations are of other tokens
    shutil.rmtree(tokens)
    assert "prepend_bos" not in stated("gone")
    project.set(model__prepend_bos=True)
    assert stated("as_stated")["prepend_bos"] is True
