"""export: a dictionary in the format of another tool, or what the analysis found of its features.

Reads data/inference/<name>/ (of a sweep <name>/<member>/), or the dictionaries that are named, and rows of the activation store
that were kept from training. Writes the format's directory, all or nothing, and says how far a pass of that format over the
written files differs from the dictionary on those rows. Of a format of features (neuronpedia) it reads data/features, and
data/interpretations if there are any, and writes files or sends them to a site. Cost: seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.command import stage_command


@stage_command
@click.option("--format", "name", required=True, help="saelens, sparsify, ..., neuronpedia; an unknown one lists all.")
@click.option("--to", help="Directory to write; of neuronpedia also https://HOST.  [default: data/export/<format>/<name>]")
@click.option("--dictionary", "places", multiple=True, help="Instead of the run's own: its directory; several of a set.")
@click.option("--member", help="Of a sweep: the member whose dictionary is meant.")
@click.option("--inference", default="data/inference", help="Directory of the inference dictionaries.")
@click.option("--activations", default="data/activations.json", help="Manifest of the activation store, or a store.")
@click.option("--tokens", type=click.IntRange(1), default=4096, help="Rows of it that the written files are checked on.")
@click.option("--drawn", is_flag=True, help="Without a store: check on drawn activations.")
@click.option("--features-dir", "features", default="data/features", help="Of a format of features: the feature store.")
@click.option("--set", "settings", multiple=True, help="NAME=VALUE: a setting of a format of features; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Of a format of features: check and count; write and send nothing.")
def main(params: str, name: str, to: str | None, member: str | None, features: str, **options: Any) -> None:
    """Write the inference dictionary, or its features, in the format of another tool."""
    from pipeline.interop.features import export_features, refuse_settings
    from pipeline.interop.stored import chosen_places, export_stored
    from pipeline.params.interchange import FEATURE_FORMATS
    from pipeline.params.loader import load_params

    loaded, asked = load_params(params), {key: options[key] for key in ("settings", "dry_run")}
    if name in FEATURE_FORMATS:
        lines = export_features(loaded, name, to, features=features, member=member, **asked)
    else:
        refuse_settings(name, **asked)
        found = chosen_places(loaded, options["places"], member, options["inference"])
        own = Path(found[0].name) if options["places"] else Path(loaded.dictionary.name) / (member or "")
        store = None if options["drawn"] else options["activations"]
        target = Path(to) if to else Path("data") / "export" / name / own
        lines = export_stored(loaded, found, target, name, activations=store, n_tokens=options["tokens"]).lines()
    for line in lines:
        click.echo(line)


if __name__ == "__main__":
    main()
