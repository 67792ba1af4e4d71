"""export: a dictionary in the format of another tool, or what the analysis found of its features.

Reads data/inference/<name>/ (of a sweep <name>/<member>/), or the dictionaries that are named, and rows of the activation store
that were kept from training. Writes the format's directory, all or nothing, with a model card, here or on the Hugging Face hub,
and says how far a pass of that format over the written files differs from the dictionary on those rows. Of a format of features
(neuronpedia) it reads data/features, and data/interpretations if there are any, and writes files or sends them to a site.
Cost: seconds.
"""

from __future__ import annotations

from typing import Any

import click

from pipeline.command import stage_command
from pipeline.interop.options import export_options


@stage_command
@export_options
def main(params: str, **options: Any) -> None:
    """Write the inference dictionary, or its features, in the format of another tool."""
    from pipeline.interop.chosen import export_chosen
    from pipeline.params.loader import load_params

    for line in export_chosen(load_params(params), params, **options):
        click.echo(line)


if __name__ == "__main__":
    main()
