"""What every stage's command line shares: `--params`, one-line errors, exit codes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

from pipeline.errors import PipelineError
from pipeline.foreign import full_disk


def _fail(message: str, code: int) -> None:
    click.echo("\n".join(f"error: {line}" for line in message.splitlines()), err=True)
    sys.exit(code)


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
            full = full_disk(error)
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
