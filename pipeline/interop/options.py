"""Options of the export stage about publishing: the card, the licence, the push."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option("--evaluation", help="Figures of the card.  [default: metrics/evaluation.json, of the run's own]"),
    click.option("--license", "licence", help="Of the weights, as the hub names it: mit, apache-2.0, ...; a push asks for it."),
    click.option("--license-name", "licence_name", help="With --license other: its name."),
    click.option("--license-link", "licence_link", help="With --license other: where its text is."),
    click.option("--language", "languages", multiple=True, help="Of the text, for the card: en, de, ...; may be repeated."),
    click.option("--as", "named", help="With --to DIRECTORY: hf:user/repository[/folder] that it will be uploaded to."),
    click.option("--private", is_flag=True, help="Push: a repository that is made is private; a public one is refused."),
    click.option("--revision", help="Push: the branch; it is made where it is not there."),
    click.option("--message", help="Push: of the commit."),
    click.option("--dry-run", is_flag=True, help="Push: do all but the push, list files and sizes."),
)


def publishing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a stage, whose function takes them by the fields of `Publishing`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
