"""Plots that a clone lacks: without them DVC cannot end an experiment of single stages, which it says when these have run."""

from __future__ import annotations

PLOTS = "metrics/plots/"


def uncached_plots() -> list[str]:
    """The directories of plots that dvc.lock names and that are not in DVC's cache; none outside of a DVC repository."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            locked = [out for out in repo.index.outs if str(out).startswith(PLOTS) and out.hash_info]
            return sorted(str(out) for out in locked if not out.cache.exists(out.hash_info.value))
    except DvcException:
        return []
