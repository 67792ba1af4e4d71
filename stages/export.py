"""export: a dictionary in the format of another tool.

Reads data/inference/<name>/ (of a sweep <name>/<member>/), or the dictionaries that are named, and rows of the activation store
that were kept from training. Writes the format's directory, all or nothing, with a model card, here or on the Hugging Face hub,
and says how far a pass of that format over the written files differs from the dictionary on those rows. Cost: seconds.
"""

from __future__ import annotations

from typing import Any

import click

from pipeline.command import stage_command
from pipeline.interop.options import publishing_options


@stage_command
@click.option("--format", "name", required=True, help="saelens, sparsify, ...; an unknown one lists all.")
@click.option("--to", help="Directory, or hf:user/repository[/folder] to push to.  [default: data/export/<format>/<name>]")
@click.option("--dictionary", "places", multiple=True, help="Instead of the run's own: its directory; several of a set.")
@click.option("--member", help="Of a sweep: the member whose dictionary is meant; without it all.")
@click.option("--inference", default="data/inference", help="Directory of the inference dictionaries.")
@click.option("--activations", default="data/activations.json", help="Manifest of the activation store, or a store.")
@click.option("--tokens", type=click.IntRange(1), default=4096, help="Rows of it that the written files are checked on.")
@click.option("--drawn", is_flag=True, help="Without a store: check on drawn activations.")
@publishing_options
def main(
    params: str,
    name: str,
    to: str | None,
    places: tuple[str, ...],
    member: str | None,
    inference: str,
    activations: str,
    tokens: int,
    drawn: bool,
    **publishing: Any,
) -> None:
    """Write the inference dictionary in the format of another tool."""
    from pipeline.interop.publishing import Publishing, chosen_dictionaries, export_run
    from pipeline.params.loader import load_params

    loaded = load_params(params)
    found = chosen_dictionaries(loaded, places, member, inference)
    store, options = None if drawn else activations, Publishing(**publishing)
    for line in export_run(loaded, params, found, name, to, options, activations=store, n_tokens=tokens):
        click.echo(line)


if __name__ == "__main__":
    main()
