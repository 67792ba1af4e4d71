"""fold: trained weights + norms -> data/inference/<name>/, which takes raw activations.

Of a sweep each member's, in data/inference/<name>/<member>/. Reads data/trained/<name>/, data/norms.json and the rows of the
activation store that were kept from training. Writes the inference dictionary and metrics/fold.json. Cost: seconds.
"""

from __future__ import annotations

import click

from pipeline.command import Output, stage_command
from pipeline.params.loader import tracking_of
from pipeline.tracking.outcome import outcome_told


@stage_command
@click.option("--trained", default="data/trained", help="Directory of the trained dictionaries, or a snapshot.")
@click.option("--norms", default="data/norms.json", help="Activation norms.")
@click.option("--activations", default="data/activations.json", help="Manifest of the activation store, or a store.")
@click.option("--out", type=Output(directory=True), default="data/inference", help="Directory of the inference dictionaries.")
@click.option("--metrics", type=Output(), default="metrics/fold.json", help="Figures to write.")
@click.option("--run", default="data/run.json", help="The tracking run to go on with.")
@outcome_told("fold", tracking_of)
def main(params: str, trained: str, norms: str, activations: str, out: str, metrics: str, run: str) -> None:
    """Fold the activation norm and the decoder norms into the weights, of each member of the sweep if there is one."""
    from pathlib import Path

    from pipeline.dictionaries.store import directory_of
    from pipeline.errors import of_member
    from pipeline.files import members_directory, write_json
    from pipeline.folding import fold_stored, model_entity
    from pipeline.norms.hook_norm import read_norms
    from pipeline.opening import open_activations
    from pipeline.params.loader import load_params
    from pipeline.planning.beginning import begin
    from pipeline.tracking.opening import open_tracker

    loaded = load_params(params)
    begin("fold", loaded)
    place = directory_of(trained, loaded.dictionary.name)
    store = open_activations(activations, device=loaded.model.device, device_map=loaded.model.device_map)
    measured, origin = read_norms(norms)
    inputs = {**store.made_from(), "norms": origin.digest}
    figures = {}
    with members_directory(Path(out) / place.name, loaded.sweep is not None) as folder:
        for member, own in loaded.members.items():
            with of_member(member):
                figures[member] = fold_stored(own, place / member, folder / member, store, measured, inputs)
    write_json(metrics, figures if loaded.sweep is not None else figures[""])
    for member, found in figures.items():
        with open_tracker(loaded.tracking, stage="fold", run_file=run, member=member) as tracker:
            tracker.log_metrics({key: value for key, value in found.items() if not isinstance(value, str)})
            tracker.log_model(*model_entity(Path(out) / place.name / member))
            if not member:
                tracker.log_artifact(metrics, "metrics")


if __name__ == "__main__":
    main()
