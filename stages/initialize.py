"""initialize: a sample of the store -> data/initial/<name>/, the dictionary's first weights.

Reads the activation store, data/norms.json and, for initialize_tc_with_mlp or initialize_lorsa_with_mhsa, the language model,
for from_dictionary the dictionary that it starts from. Writes data/initial/<name>/. Cost: seconds; grid_search_init_norm runs
70 batches.
"""

from __future__ import annotations

import click

from pipeline.command import Output, stage_command


@stage_command
@click.option("--activations", default="data/activations.json", help="Manifest of the activation store, or a store.")
@click.option("--norms", default="data/norms.json", help="Activation norms.")
@click.option("--out", type=Output(directory=True), default="data/initial", help="Directory of the initial dictionaries.")
def main(params: str, activations: str, norms: str, out: str) -> None:
    """Make the dictionary's first weights: drawn, or taken from another dictionary."""
    from pathlib import Path

    from pipeline.initialization.from_store import Places, initialize_dictionary
    from pipeline.params.loader import load_params

    loaded = load_params(params)
    made = initialize_dictionary(loaded, Places(Path(activations), Path(norms), Path(out) / loaded.dictionary.name))
    if made.said is not None:
        click.echo(f"initialize: {made.said}", err=True)
        return
    for name, value in made.found.items():
        click.echo(f"initialize: {name} {value:.6g}", err=True)


if __name__ == "__main__":
    main()
