"""What DVC's cache lacks: plots without which it cannot end an experiment of single stages, and outputs never made here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

PLOTS = "metrics/plots/"


def lacking_line() -> str | None:
    """What is said where this is an experiment of single stages that DVC could not end; None: it could."""
    if "DVC_EXP_NAME" not in os.environ or runs_every_stage() or not (lacking := uncached_plots()):
        return None
    return (
        f"warning: DVC's cache here lacks {', '.join(lacking)} (in dvc.lock), without which `dvc exp run STAGE` fails when "
        "its stages have run: run `dvc exp run` without a stage, or `dvc repro STAGE`"
    )


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


def runs_every_stage(commands: Sequence[Sequence[str]] | None = None) -> bool:
    """Whether this process is of a `dvc exp run` without a stage, which makes all plots anew.

    Args:
        commands: command lines of the processes that it is of, words each; None: as they are.
    """
    from dvc.cli import DvcParserError, parse_args

    for words in _commands() if commands is None else commands:
        starts = [at for at in range(len(words) - 1) if list(words[at : at + 2]) in (["exp", "run"], ["experiments", "run"])]
        if starts:
            try:
                return not parse_args(list(words[starts[0] :])).targets
            except DvcParserError:
                return False
    return False


def _commands() -> list[list[str]]:
    """The command lines of the processes that this one is of, the nearest first; none where the system does not tell."""
    found, number = [], os.getppid()
    try:
        while number > 1:
            place = Path(f"/proc/{number}")
            found.append((place / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0"))
            number = int((place / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        pass
    return found


def made_here(path: Path) -> bool:
    """Whether DVC's cache has the output at `path`, or one that it lies in, as dvc.lock names it: it was made in this clone."""
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
    except ImportError:
        return False
    own = path.absolute()
    try:
        with Repo() as repo:
            named = [out for out in repo.index.outs if out.hash_info and Path(out.fs_path) in (own, *own.parents)]
            return any(out.cache.exists(out.hash_info.value) for out in named)
    except DvcException:
        return False
