"""The figures that stages leave in metrics/, read by other stages; anybody may have written such a file anew."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline import metric_names as names
from pipeline.errors import DataError
from pipeline.files import is_number, json_object, parse_json, read_bytes, read_object


def read_metrics(
    path: str | Path, what: str, next_action: str, wanted: Iterable[str] = (), *, member: str | None = None
) -> dict[str, Any]:
    """The figures of metrics/<stage>.json.

    Args:
        path: of the file.
        what: it should be.
        next_action: what to do where it is not.
        wanted: metrics that must be there, and everything else be a number or null with them; one that the evaluation has of
            ordinary tokens counts (see :func:`pipeline.metric_names.ordinary`).
        member: of a sweep, whose figures are wanted; "": the file should be of one dictionary; None: it may have any form.

    Raises:
        DataError: the file is missing or damaged, lacks one that is wanted or the member, or has a number that is not finite.
    """
    found, wanted = read_object(path, what, next_action), tuple(wanted)
    if member is not None:
        found = of_member_alone(found, member, f"{path}: {what}", next_action)
    for key, value in found.items() if wanted else names.flatten(found):
        other = value is None if wanted else isinstance(value, bool) or not isinstance(value, int | float)
        if not (other or is_number(value)):
            raise DataError(f"{path}: {what}: {key} is {float_text(value)}, wanted a finite number; {next_action}")
    for name in wanted:
        if found.get(names.ordinary(found, name)) is None:
            raise DataError(f"{path}: {what}: {name} is missing; {next_action}")
    return found


def read_history(path: str | Path, next_action: str, *, member: str = "") -> list[dict[str, float]]:
    """The rows of metrics/train_history.jsonl, {"step": n, figure: number, ...}; of a sweep those of one member.

    Args:
        path: of the file.
        next_action: what to do where it is not right.
        member: name of the member of a sweep; "": the file is of one dictionary.

    Raises:
        DataError: the file is missing, has no such member, or a line of it is no such row; the message names the line.
    """
    found = read_histories(path, next_action)
    if member not in found and (member or found):
        has = f"the members {', '.join(found)}" if all(found) else "one dictionary"
        wanted = f"those of member '{member}'" if member else "those of one dictionary"
        raise DataError(f"{path}: the training history has the rows of {has}, wanted {wanted}; {next_action}")
    return found.get(member, [])


def read_histories(path: str | Path, next_action: str) -> dict[str, list[dict[str, float]]]:
    """{member: rows} of metrics/train_history.jsonl, the rows as of :func:`read_history`; without a sweep {"": rows}.

    Raises:
        DataError: the file is missing, or a line of it is no such row; the message names the line.
    """
    what = "the training history"
    rows: dict[str, list[dict[str, float]]] = {}
    for number, line in enumerate(read_bytes(path, what, next_action).split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{path}: line {number} of {what}"
        row = json_object(parse_json(line, place, next_action), place, next_action)
        member = row.pop(names.MEMBER, "")
        if not isinstance(member, str):
            raise DataError(f"{place}: {names.MEMBER} should be a name, got {member!r}; {next_action}")
        for key, value in row.items():
            if not is_number(value):
                raise DataError(f"{place}: {key} is {float_text(value)}, wanted a finite number; {next_action}")
        if not isinstance(row.get(names.STEP), int):
            raise DataError(f"{place}: {names.STEP} should be a whole number, got {row.get(names.STEP)!r}; {next_action}")
        rows.setdefault(member, []).append(row)
    return rows


def float_text(value: object) -> str:
    """A value for a message; a number that no float holds is not written out."""
    return "too large" if isinstance(value, int) and not is_number(value) and not isinstance(value, bool) else repr(value)


def of_member_alone(found: dict[str, Any], member: str, where: str, next_action: str) -> dict[str, Any]:
    """The figures of a member, of {member: {...}}; all of them where `member` is empty and they are of one dictionary.

    Raises:
        DataError: there is no such member, or there are members where one dictionary was wanted, or the reverse.
    """
    members = list(found) if all(isinstance(value, dict) for value in found.values()) else []
    if not member and members:
        raise DataError(f"{where} is of a sweep ({', '.join(members)}), and the parameters have none; {next_action}")
    if member and not members:
        raise DataError(f"{where} is of one dictionary, and the parameters have a sweep with {member}; {next_action}")
    if member and member not in members:
        raise DataError(f"{where}: no member {member} (there: {', '.join(members)}); {next_action}")
    return found[member] if member else found
