"""The errors that Scopeline raises on purpose.

A message says what is wrong, where (path, key, step, hook point), what was found, what was wanted and what to do next.
Every stage turns a :class:`PipelineError` into one line on standard error and its exit code; anything else is a bug and
keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterable, Iterator, Sequence

LONGEST = 4000  # characters of a fault
FAULTS = "SCOPELINE_FAULTS"  # the directory in which several processes of one stage leave their faults, each under its rank


class PipelineError(Exception):
    """Something outside the code is wrong: parameters, data, checkpoints, numbers, the machine.

    Args:
        faults: a complete sentence for each; whatever a name, a file or another library has put into it, it becomes one line.
    """

    exit_code = 2

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = [one_line(fault) for fault in ([faults] if isinstance(faults, str) else faults)]
        super().__init__("\n".join(self.faults))

    def __reduce__(self) -> tuple[type[PipelineError], tuple[list[str]]]:
        return type(self), (self.faults,)


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


def tells_the_outcome() -> bool:
    """Whether this process tells how its stage has ended: it is alone, or the first of several that no stage has started."""
    return FAULTS not in os.environ and os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def of_member(name: str) -> Iterator[None]:
    """Within the block a fault begins with the member of the sweep that it is of; "": there is no sweep."""
    try:
        yield
    except PipelineError as error:
        if not name:
            raise
        raise type(error)([f"sweep.{name}: {fault}" for fault in error.faults]) from error


def one_line(text: str) -> str:
    """The text with escapes of what a terminal does not show as a character: line breaks, control characters, half surrogates.

    Of one longer than LONGEST the middle is left out: where it begins is the place, where it ends what to do.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


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
