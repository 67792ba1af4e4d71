"""Metric names, flattening, provenance."""

from __future__ import annotations

import subprocess

import pytest

from pipeline import provenance
from pipeline.metric_names import flatten, grouped


@pytest.mark.parametrize(
    ("stage", "name", "wanted"),
    [
        ("train", "l0", "train/l0"),
        ("evaluate", "fvu", "evaluation/fvu"),
        ("evaluate", "fvu.blocks.2.hook_resid_post", "evaluation/fvu.blocks.2.hook_resid_post"),
        ("train", "loss/l_rec", "loss/l_rec"),
        ("norm", "m@small(x)", "norm/m_small_x_"),
        ("train", "", "train/"),
    ],
)
def test_grouped(stage, name, wanted):
    assert grouped(stage, name) == wanted


def test_a_long_name_is_cut():
    assert len(grouped("train", "x" * 400)) == 250


def test_flatten():
    nested = {"seed": 0, "trainer": {"lr": 1e-3, "betas": [0.9, 0.99]}, "a": {"b": {"c": None}}, "empty": {}}
    assert list(flatten(nested)) == [
        ("seed", 0), ("trainer.lr", 1e-3), ("trainer.betas", [0.9, 0.99]), ("a.b.c", None), ("empty", {}),
    ]  # fmt: skip


@pytest.fixture
def repository(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    for name in ("code.py", "params.yaml", "dvc.lock", "requirements.lock"):
        (tmp_path / name).write_text("1")
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "train.json").write_text("{}")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.chdir(tmp_path)
    return tmp_path, git("rev-parse", "HEAD")


def test_a_clean_tree_and_what_a_run_changes(repository):
    directory, commit = repository
    assert provenance.source_revision(directory) == (commit, False)
    for name in ("params.yaml", "dvc.lock", "metrics/train.json", "untracked.txt"):
        (directory / name).write_text("2")
    assert provenance.source_revision(directory) == (commit, False)
    (directory / "code.py").write_text("2")
    assert provenance.source_revision(directory) == (commit, True)


def test_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.source_revision(tmp_path) == (None, None)
    monkeypatch.setenv("PATH", "")
    assert provenance.source_revision(tmp_path) == (None, None)
    assert provenance.source_revision(tmp_path / "missing") == (None, None)


def test_tags(repository, monkeypatch):
    _, commit = repository
    monkeypatch.setenv("DVC_EXP_NAME", "brave-lynx")
    monkeypatch.delenv("DVC_EXP_BASELINE_REV", raising=False)
    tags = provenance.provenance_tags()
    assert tags["mlflow.source.git.commit"] == commit
    assert tags["git_dirty"] == "false"
    assert tags["dvc_exp_name"] == "brave-lynx"
    assert "dvc_exp_baseline" not in tags
    assert tags["dvc_lock_sha256"] == tags["requirements_lock_sha256"]
    assert len(tags["dvc_lock_sha256"]) == 64
    assert {"version.python", "version.torch", "version.mlflow"} <= set(tags)
    assert all(isinstance(value, str) for value in tags.values())


def test_versions_of_what_is_not_installed_are_absent():
    assert set(provenance.versions(("numpy", "no-such-package-here"))) == {"python", "numpy"}
    assert provenance.file_digest("no-such-file") is None
