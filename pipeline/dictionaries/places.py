"""Where the dictionaries of a run are: in a directory of its name, of a sweep each member's in one of its own inside that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.dictionaries.formats.interface import CONFIG_FILE, members_at
from pipeline.errors import DataError, ParamsError, unknown_name
from pipeline.params.schema import Params

NEXT = "run `dvc repro`"


def dictionary_places(params: Params, folder: str | Path) -> dict[str, Path]:
    """{member: its directory}, all of which are there; {"": directory} without a sweep.

    Args:
        params: of the run.
        folder: data/trained or data/inference.

    Raises:
        DataError: the directory is of a run with other members, or of one without while there are some here, or the reverse.
    """
    run = Path(folder) / params.dictionary.name
    there, wanted = members_at(run), [name for name in params.members if name]
    if there and not wanted:
        raise DataError(f"{run}: holds the members {', '.join(there)} of a sweep, and the parameters have none; {NEXT}")
    if wanted and (run / CONFIG_FILE).exists():
        raise DataError(f"{run}: holds one dictionary, and the parameters have the sweep {', '.join(wanted)}; {NEXT}")
    missing = [name for name in wanted if name not in there]
    if missing:
        raise DataError(
            f"{run}: no dictionary of {'member' if len(missing) == 1 else 'members'} {', '.join(missing)} of the sweep "
            f"(there: {', '.join(there) or 'none'}); {NEXT}"
        )
    return {name: run / name for name in params.members}


def chosen(name: str | None, known: Mapping[str, object] | list[str], what: str) -> str:
    """The member that --member names; "" where there is no sweep.

    Args:
        name: the option; None: not given.
        known: the members; none, or "" alone, without a sweep.
        what: is looked at, for messages.

    Raises:
        ParamsError: a sweep and no member, no such member, or a member without a sweep.
    """
    names = [each for each in known if each]
    if not names and name is not None:
        raise ParamsError(
            f"--member {name}: {what} is of one dictionary, without a sweep; leave the option out, or bring back a run with "
            "members by `dvc exp apply NAME`"
        )
    if names and name is None:
        raise ParamsError(f"--member: {what} is of a sweep; name one of its members: {', '.join(names)}")
    if name is not None and name not in names:
        raise ParamsError(f"--member: {unknown_name('member', name, names)}")
    return name or ""
