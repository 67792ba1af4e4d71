"""initialize: a sample of the store -> data/initial/<name>/, the dictionary's first weights.

Of a sweep each member's, in data/initial/<name>/<member>/. Reads the activation store, data/norms.json and, for
initialize_tc_with_mlp or initialize_lorsa_with_mhsa, the language model, for from_dictionary the dictionary that it starts
from. Writes data/initial/<name>/. Cost: seconds; grid_search_init_norm runs 70 batches.
"""

from __future__ import annotations

import click

from pipeline.command import Output, stage_command


@stage_command
@click.option("--activations", default="data/activations.json", help="Manifest of the activation store, or a store.")
@click.option("--norms", default="data/norms.json", help="Activation norms.")
@click.option("--out", type=Output(directory=True), default="data/initial", help="Directory of the initial dictionaries.")
def main(params: str, activations: str, norms: str, out: str) -> None:
    """Make the dictionary's first weights, or those of each member of the sweep: drawn, or taken from another dictionary."""
    from pathlib import Path

    from pipeline.errors import of_member
    from pipeline.files import members_directory
    from pipeline.initialization.compose import found_in_words
    from pipeline.initialization.from_store import Places, initialize_dictionary
    from pipeline.params.loader import load_params
    from pipeline.planning.beginning import begin

    loaded = load_params(params)
    begin("initialize", loaded)
    with members_directory(Path(out) / loaded.dictionary.name, loaded.sweep is not None) as folder:
        for member, own in loaded.members.items():
            with of_member(member):
                made = initialize_dictionary(own, Places(Path(activations), Path(norms), folder / member))
            label = f"initialize: {member}" if member else "initialize"
            for line in [made.said] if made.said is not None else found_in_words(made.found):
                click.echo(f"{label}: {line}", err=True)


if __name__ == "__main__":
    main()
