"""What every stage's command line shares: `--params`, one-line errors, exit codes."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable
from typing import Any

import click

from pipeline.errors import PipelineError


def _fail(message: str, code: int) -> None:
    click.echo("\n".join(f"error: {line}" for line in message.splitlines()), err=True)
    sys.exit(code)


def _full_disk(error: BaseException | None) -> str | None:
    """`<path>: ` (or nothing, if it is not known) where the error, or what it was raised from, is a full disk; else None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{error.filename}: " if error.filename else ""
        if not isinstance(error, OSError) and "No space left on device" in str(error):  # libraries that are not Python
            return ""
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def stage_command(function: Callable[..., Any]) -> click.Command:
    """Make a click command of a stage's main function, which takes `params` (a path) and its own options.

    A :class:`PipelineError` becomes one `error:` line for each fault and the error's exit code (2, or 130 after an
    interrupt); a full disk becomes exit code 2; any other exception is a bug and keeps its traceback.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except PipelineError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted; run the same command again to go on", 130)
        except Exception as error:
            full = _full_disk(error)
            if full is None:
                raise
            _fail(f"{full}no space left on the device; free some, then run the same command again", 2)

    option = click.option(
        "--params",
        default="params.yaml",
        show_default=True,
        type=click.Path(dir_okay=False),
        help="Parameters: YAML, TOML or JSON.",
    )
    return click.command(context_settings={"show_default": True})(option(run))
