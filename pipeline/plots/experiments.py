"""The experiments that DVC keeps, as rows."""

from __future__ import annotations

from typing import Any

from pipeline.foreign import reading
from pipeline.plots.experiment import NOTHING

WORKSPACE = "workspace"
COMMITTED = "of the repository"  # a commit's own figures, which came with it or were committed


def experiment_rows(commits: int) -> tuple[list[dict[str, Any]], int]:
    """(rows of `dvc.api.exp_show`, number of experiments that other commits have). The figures that a commit has itself are
    named as such, and come last.

    Args:
        commits: experiments of so many commits back; -1: of all (a commit takes about a second the first time).

    Raises:
        DataError: there is no repository, or DVC cannot read it.
    """
    import dvc.api
    from dvc.repo import Repo

    advice = "run this in the project's directory, a git repository in which `dvc init` has been run"
    with reading("the experiments cannot be read", advice):
        rows = dvc.api.exp_show(num=commits)
        with Repo() as repo:
            experiments = repo.experiments
            every, shown = experiments.ls(all_commits=True), experiments.ls(num=commits) if commits >= 0 else {}
    others = sum(map(len, every.values())) - sum(map(len, shown.values())) if commits >= 0 else 0
    return sorted(map(_named, rows), key=lambda row: COMMITTED in str(row.get("Experiment"))), max(others, 0)


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """The row; of a commit with a name that says so."""
    if row.get("Experiment") not in NOTHING or row.get("rev") in (*NOTHING, WORKSPACE):
        return row
    return {**row, "Experiment": f"{row['rev']} ({COMMITTED})"}
