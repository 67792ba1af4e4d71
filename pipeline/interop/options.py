"""Options of the export stage: what is exported, and about publishing the card, the licence, the push."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option("--format", "name", required=True, help="saelens, sparsify, ..., neuronpedia; an unknown one lists all."),
    click.option(
        "--to",
        help="Directory, or hf:user/repository[/folder] to push to; of neuronpedia also https://HOST.  "
        "[default: data/export/<format>/<name>]",
    ),
    click.option("--dictionary", "places", multiple=True, help="Instead of the run's own: its directory; several of a set."),
    click.option("--member", help="Of a sweep: the member whose dictionary is meant; without it all."),
    click.option("--inference", default="data/inference", help="Directory of the inference dictionaries."),
    click.option("--activations", default="data/activations.json", help="Manifest of the activation store, or a store."),
    click.option("--tokens", type=click.IntRange(1), default=4096, help="Rows of it that the written files are checked on."),
    click.option("--drawn", is_flag=True, help="Without a store: check on drawn activations."),
    click.option("--with-features", is_flag=True, help="Write pages of the features too (circuit_tracer)."),
    click.option("--features", multiple=True, help="Feature store, of a set of each dictionary.  [default: data/features]"),
    click.option("--set", "settings", multiple=True, help="NAME=VALUE: a setting of a format of features; may be repeated."),
    click.option("--evaluation", help="Figures of the card.  [default: metrics/evaluation.json, of the run's own]"),
    click.option("--license", "licence", help="Of the weights, as the hub names it: mit, apache-2.0, ...; a push asks for it."),
    click.option("--license-name", "licence_name", help="With --license other: its name."),
    click.option("--license-link", "licence_link", help="With --license other: where its text is."),
    click.option("--language", "languages", multiple=True, help="Of the text, for the card: en, de, ...; may be repeated."),
    click.option("--as", "named", help="With --to DIRECTORY: hf:user/repository[/folder] that it will be uploaded to."),
    click.option("--private", is_flag=True, help="Push: a repository that is made is private; a public one is refused."),
    click.option("--revision", help="Push: the branch; it is made where it is not there."),
    click.option("--message", help="Push: of the commit."),
    click.option("--dry-run", is_flag=True, help="Do all but the push, or of neuronpedia check and count; send nothing."),
)


def export_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a stage, whose function takes them as `export_chosen` does."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
