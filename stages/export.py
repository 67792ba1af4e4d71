"""export: a dictionary in the format of another tool.

Reads data/inference/<name>/ (of a sweep <name>/<member>/), or the dictionaries that are named, and rows of the activation store
that were kept from training. Writes the format's directory, all or nothing, and says how far a pass of that format over the
written files differs from the dictionary on those rows. Cost: seconds.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.command import stage_command


@stage_command
@click.option("--format", "name", required=True, help="saelens, sparsify, ...; an unknown one lists all.")
@click.option("--to", type=click.Path(path_type=Path), help="Directory to write.  [default: data/export/<format>/<name>]")
@click.option("--dictionary", "places", multiple=True, help="Instead of the run's own: its directory; several of a set.")
@click.option("--member", help="Of a sweep: the member whose dictionary is meant.")
@click.option("--inference", default="data/inference", help="Directory of the inference dictionaries.")
@click.option("--activations", default="data/activations.json", help="Manifest of the activation store, or a store.")
@click.option("--tokens", type=click.IntRange(1), default=4096, help="Rows of it that the written files are checked on.")
@click.option("--with-features", is_flag=True, help="Write pages of the features too (circuit_tracer).")
@click.option("--features", "stores", multiple=True, help="Feature store of each dictionary.  [default: data/features]")
@click.option("--drawn", is_flag=True, help="Without a store: check on drawn activations.")
def main(
    params: str,
    name: str,
    to: Path | None,
    places: tuple[str, ...],
    member: str | None,
    inference: str,
    activations: str,
    tokens: int,
    with_features: bool,
    stores: tuple[str, ...],
    drawn: bool,
) -> None:
    """Write the inference dictionary in the format of another tool."""
    from pipeline.interop.stored import chosen_places, export_stored, feature_places
    from pipeline.params.loader import load_params

    loaded = load_params(params)
    found = chosen_places(loaded, places, member, inference)
    own = Path(found[0].name) if places else Path(loaded.dictionary.name) / (member or "")
    target = to or Path("data") / "export" / name / own
    shown = feature_places(loaded, found, stores) if with_features or stores else None
    rows = None if drawn else activations
    export = export_stored(loaded, found, target, name, activations=rows, n_tokens=tokens, features=shown)
    for line in export.lines():
        click.echo(line)


if __name__ == "__main__":
    main()
