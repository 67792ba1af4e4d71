"""A message is tested by its place, exactly, and by what is useful in it (what was got, what is wanted, what to do), not by its words."""

from __future__ import annotations

import re

from pipeline.errors import ParamsError


def saying(*parts: object) -> str:
    """The pattern, as of pytest.raises, of a message in which each part stands whole (5 is not in 50, nor in 0.5), in any order."""
    return "(?s)^" + "".join(rf"(?=.*(?<![\w.-])(?<!\d,){re.escape(str(part))}(?!\w|[.,]\d))" for part in parts)


def says(message: object, *parts: object) -> None:
    """Each part stands whole in the message."""
    absent = [part for part in parts if not re.search(saying(part), str(message))]
    assert not absent, f"{absent} not in: {message}"


def faults(error: ParamsError, source: object = "") -> dict[str, str]:
    """What is said of each key, in order; of a file each begins with its name (`source`). A key has one fault."""
    prefix = f"{source}: " if source else ""
    assert all(fault.startswith(prefix) for fault in error.faults), error.faults
    found = [fault.removeprefix(prefix).partition(": ") for fault in error.faults]
    assert len({key for key, _, _ in found}) == len(found), error.faults
    return {key: text for key, _, text in found}


def between_ends(stderr: str) -> list[str]:
    """The lines of a stage without those at its beginning (what it will do, how long and in how much memory; what inspect loads)
    and the one at its end (what it wrote and took)."""
    lines = stderr.splitlines()
    for form in (r"[a-z]+: .*; .*, about [\d.]+ [kMGT]?B of memory", r"inspect: loads .*"):
        if lines and re.fullmatch(form, lines[0]):
            del lines[0]
    if lines and re.fullmatch(r"[a-z_]+: wrote .*; took .*, CPU time .*, peak memory .*", lines[-1]):
        del lines[-1]
    return lines
