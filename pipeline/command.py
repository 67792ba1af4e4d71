"""What every stage's command line shares: `--params`, one-line errors, exit codes."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from pipeline.errors import PipelineError

_OUT_OF_MEMORY = ("can't allocate memory", "bad_alloc", "Cannot allocate memory")


def _fail(lines: Sequence[str], code: int) -> None:
    click.echo("\n".join(f"error: {_one_line(line)}" for line in lines), err=True)
    sys.exit(code)


def _one_line(text: str) -> str:
    """The text with whatever a terminal would not show as a character, as in a name from a damaged file, in escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _full_disk(error: BaseException | None) -> str | None:
    """`<path>: ` (or nothing, if it is not known) where the error, or what it was raised from, is a full disk; else None."""
    for each in _with_causes(error):
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{each.filename}: " if each.filename else ""
        if not isinstance(each, OSError) and "No space left on device" in str(each):  # libraries that are not Python
            return ""
    return None


def _full_memory(error: BaseException | None) -> bool:
    """Whether the error, or what it was raised from, is memory that is not there, of the machine or of a device."""
    return any(
        isinstance(each, MemoryError)
        or type(each).__name__ == "OutOfMemoryError"  # torch's, of a device
        or (isinstance(each, OSError) and each.errno == errno.ENOMEM)
        or any(words in str(each) for words in _OUT_OF_MEMORY)
        for each in _with_causes(error)
    )


def stage_command(function: Callable[..., Any]) -> click.Command:
    """Make a click command of a stage's main function, which takes `params` (a path) and its own options.

    A :class:`PipelineError` becomes one `error:` line for each fault and the error's exit code (2, or 130 after an
    interrupt); a full disk and exhausted memory become exit code 2; any other exception is a bug and keeps its traceback.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except PipelineError as error:
            _fail(error.faults, error.exit_code)
        except KeyboardInterrupt:
            _fail(["interrupted; run the same command again to go on"], 130)
        except Exception as error:
            full = _full_disk(error)
            if full is not None:
                _fail([f"{full}no space left on the device; free some, then run the same command again"], 2)
            if not _full_memory(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            _fail(
                [
                    f"out of memory ({reason}); lower what the stage holds at once (batch sizes, activations.buffer_size, "
                    "dictionary.expansion_factor), or end other programs, then run the same command again"
                ],
                2,
            )

    option = click.option(
        "--params",
        default="params.yaml",
        show_default=True,
        type=click.Path(dir_okay=False),
        help="Parameters: YAML, TOML or JSON.",
    )
    return click.command(context_settings={"show_default": True})(option(run))
