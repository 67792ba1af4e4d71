"""The experiments that DVC keeps, as rows, and what their evaluations have kept of each document."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.documents import FILE, Documents, Kept
from pipeline.errors import DataError
from pipeline.foreign import reading
from pipeline.plots.experiment import DOCUMENTS, NOTHING

WORKSPACE = "workspace"
AFTER = "analyze"  # the stage behind the evaluation, whose figures do not depend on it
EVALUATION = "metrics/plots/evaluation"
COMMITTED = "of the repository"  # a commit's own figures, which came with it or were committed


def experiment_rows(commits: int) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows of `dvc.api.exp_show`, lines on what is not among them). The figures that a commit has itself are named as such,
    and come last. The working tree is left out where its parameters are not those of its figures: a run is at work in it, or
    one has failed.

    Args:
        commits: experiments of so many commits back; -1: of all (a commit takes about a second the first time).

    Raises:
        DataError: there is no repository, or DVC cannot read it.
    """
    import dvc.api
    import yaml
    from dvc.repo import Repo

    advice = "run this in the project's directory, a git repository in which `dvc init` has been run"
    with reading("the experiments cannot be read", advice):
        rows, under_way = dvc.api.exp_show(num=commits), _under_way(yaml.safe_load)
        with Repo() as repo:
            experiments = repo.experiments
            every, shown = experiments.ls(all_commits=True), experiments.ls(num=commits) if commits >= 0 else {}
    notes = []
    if commits >= 0 and (others := sum(map(len, every.values())) - sum(map(len, shown.values()))) > 0:
        notes.append(f"{others} more experiments are of other commits: --commits -1 shows them too")
    if under_way:
        rows = [row for row in rows if row.get("rev") != WORKSPACE]
        notes.append(
            "the working tree is left out: params.yaml is not what its figures were made with (a run is at work, or has "
            "failed); once evaluate has ended, MLflow and metrics/evaluation.json have its figures"
        )
    return sorted(map(_named, rows), key=lambda row: COMMITTED in str(row.get("Experiment"))), notes


def with_documents(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row, by DOCUMENTS with what gives those of a member, of "" without a sweep.

    Of the working tree they are read of the file itself, of another revision of DVC's cache: no remote is asked.
    """
    rev = str(row.get("rev"))
    return {**row, DOCUMENTS: lambda member: Kept(lambda: Documents.read(_content(rev, member)))}


def _content(rev: str, member: str) -> bytes | None:
    name = f"{member}/{FILE}" if member else FILE
    path = f"{EVALUATION}/{name}" if rev == WORKSPACE else _cached(rev).get(name)
    try:
        return None if path is None else Path(path).read_bytes()
    except OSError:
        return None


@functools.lru_cache(maxsize=256)
def _cached(rev: str) -> dict[str, str]:
    """{file of the evaluation's plots at a revision: where DVC's cache has it, or would}."""
    from dvc.repo import Repo

    found: dict[str, str] = {}
    fault = f"the evaluation of {rev} is not in the cache"
    with contextlib.suppress(DataError), reading(fault), Repo() as repo, repo.switch(rev):
        (out,) = repo.find_outs_by_path(EVALUATION)
        for key, _, digest in out.get_obj() or ():
            found["/".join(key)] = out.cache.oid_to_path(digest.value)
    return found


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """The row; of a commit with a name that says so."""
    if row.get("Experiment") not in NOTHING or row.get("rev") in (*NOTHING, WORKSPACE):
        return row
    return {**row, "Experiment": f"{row['rev']} ({COMMITTED})"}


def _under_way(read: Callable[[str], Any]) -> bool:
    """Whether a stage of dvc.lock, up to the evaluation, had other parameters than params.yaml has now.

    Args:
        read: YAML.
    """
    lock, params = (Path(name) for name in ("dvc.lock", "params.yaml"))
    if not lock.is_file() or not params.is_file():
        return False
    now, stages = read(params.read_text()) or {}, (read(lock.read_text()) or {}).get("stages", {})
    had = (stage.get("params", {}).get("params.yaml", {}) for name, stage in stages.items() if name != AFTER)
    return any(_stated(value) != _stated(_at(now, key)) for each in had for key, value in each.items())


def _at(params: Any, key: str) -> Any:
    """The value of a dotted key; None: it is not there."""
    for part in key.split("."):
        params = params.get(part) if isinstance(params, dict) else None
    return params


def _stated(value: Any) -> Any:
    """Without the nulls, which may be written or left out; 1e-06, which YAML takes for text, as a number."""
    if isinstance(value, dict):
        return {key: _stated(each) for key, each in value.items() if each is not None}
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value
