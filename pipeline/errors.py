"""The errors that Scopeline raises on purpose.

A message says what is wrong, where (path, key, step, hook point), what was found, what was wanted and what to do next.
Every stage turns a :class:`PipelineError` into one line on standard error and its exit code; anything else is a bug and
keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class PipelineError(Exception):
    """Something outside the code is wrong: parameters, data, checkpoints, numbers, the machine.

    One thing or more: `faults` has one complete sentence for each.
    """

    exit_code = 2

    def __init__(self, faults: str | Sequence[str] = "") -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


class ParamsError(PipelineError):
    """One or more parameters are wrong."""


class DataError(PipelineError):
    """A file, store, data set, model or hook point is missing, damaged, or not the one that was asked for."""


class CheckpointError(PipelineError):
    """A checkpoint cannot be resumed from."""


class NumericsError(PipelineError):
    """A number that should be finite is not, or a quantity is undefined on this data."""


class Interrupted(PipelineError):
    """The user stopped the run; what was done so far is saved."""

    exit_code = 130


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest in spelling to `name`, or None if none is close."""
    matches = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """`unknown <what> '<name>'; did you mean '<nearest>'? (known: ...)`."""
    names = [str(k) for k in known]
    close = nearest(name, names)
    hint = f"; did you mean '{close}'?" if close else ""
    listed = ", ".join(names) if names else "none"
    return f"unknown {what} '{name}'{hint} (known: {listed})"
