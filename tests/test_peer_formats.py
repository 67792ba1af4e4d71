"""The benchmark of other tools' loaders: what it asks for, and what its page says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benchmarks import peer_formats
from benchmarks.peers import SOURCES


def git(place: Path, *arguments: str) -> str:
    """What git says in a directory."""
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", "-C", str(place), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one file, committed."""
    place = tmp_path / "checkout"
    (place / "inner").mkdir(parents=True)
    (place / "inner" / "file").write_text("a")
    git(place, "init", "-q")
    git(place, "add", ".")
    git(place, "commit", "-q", "-m", "a")
    return place


def test_the_commit_of_a_checkout_is_read_from_it(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert len(head) == 40
    assert peer_formats.commit(checkout) == head
    (checkout / "inner" / "file").write_text("b")
    assert peer_formats.commit(checkout) == f"{head} with changed files"


@pytest.mark.parametrize("inner", ["inner", "missing"])
def test_what_is_no_checkout_has_no_commit(checkout: Path, inner: str) -> None:
    with pytest.raises(click.BadParameter, match="no git checkout"):
        peer_formats.commit(checkout / inner)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--peer", f"circuit_tracer={sys.executable}"], f"a checkout of {SOURCES['circuit_tracer'][0]}"),
        (["--peer", f"sparsify={sys.executable}", "--run", "."], "--run exports for circuit_tracer"),
        (["--peer", "sparsify=/no/python"], "--peer sparsify=/no/python: no program"),
        (["--peer", "other=/no/python"], "NAME one of"),
    ],
)
def test_what_is_missing_is_asked_for_first(options: list[str], said: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(peer_formats.main, [*options, "--out", str(tmp_path / "out.md")])
    assert found.exit_code == 2
    assert said in " ".join(found.stderr.split())
    assert not (tmp_path / "out.md").exists()


def test_a_loader_that_refuses_has_its_words_in_the_table(tmp_path: Path) -> None:
    options = ["--peer", f"sparsify={sys.executable}", "--out", str(tmp_path / "out.md")]  # whose Python has no sparsify
    found = CliRunner().invoke(peer_formats.main, options)
    page = (tmp_path / "out.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(("| written", "| made"))]
    assert found.exit_code == 1
    assert len(rows) == 6
    assert all("No module named 'sparsify'" in row for row in rows)
    assert "- sparsify: torch " in page


def test_the_page_states_versions_and_commits() -> None:
    versions = {"circuit_tracer": ["huggingface-hub 0.36.2"], "sparsify": ["eai-sparsify 1.3.3"]}
    page = peer_formats.head("command", versions, {"circuit_tracer": "0" * 40}, trained_ones=True)
    assert f"- circuit_tracer: huggingface-hub 0.36.2; source {SOURCES['circuit_tracer'][0]} at {'0' * 40}" in page
    assert "- sparsify: eai-sparsify 1.3.3" in page
