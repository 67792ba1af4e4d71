"""fold: trained weights + norms -> data/inference/<name>/, which takes raw activations.

Reads data/trained/<name>/, data/norms.json and the rows of the activation store that were kept from training. Writes the
inference dictionary and metrics/fold.json. Cost: seconds.
"""

from __future__ import annotations

import click

from pipeline.command import Output, stage_command


@stage_command
@click.option("--trained", default="data/trained", help="Directory of the trained dictionaries, or a snapshot.")
@click.option("--norms", default="data/norms.json", help="Activation norms.")
@click.option("--activations", default="data/activations.json", help="Manifest of the activation store, or a store.")
@click.option("--out", type=Output(directory=True), default="data/inference", help="Directory of the inference dictionaries.")
@click.option("--metrics", type=Output(), default="metrics/fold.json", help="Figures to write.")
@click.option("--run", default="data/run.json", help="The tracking run to go on with.")
def main(params: str, trained: str, norms: str, activations: str, out: str, metrics: str, run: str) -> None:
    """Fold the activation norm and the decoder norms into the weights."""
    from pathlib import Path

    from pipeline.activations.schema import calibration_rows
    from pipeline.contracts.sealing import Origin
    from pipeline.dictionaries.saving import save_dictionary
    from pipeline.dictionaries.store import directory_of, load_dictionary
    from pipeline.files import write_json
    from pipeline.folding import StoredBatches, fold_dictionary
    from pipeline.norms.hook_norm import read_norms
    from pipeline.opening import open_activations
    from pipeline.params.loader import load_params
    from pipeline.tracking.opening import open_tracker

    loaded = load_params(params)
    place = directory_of(trained, loaded.dictionary.name)
    dictionary = load_dictionary(place)
    store, (measured, origin) = open_activations(activations, device=loaded.model.device), read_norms(norms)
    inputs = {**store.made_from(), "norms": origin.digest}
    made = Origin.of(dictionary.config.provenance).check(place, "train", inputs)
    rows = calibration_rows(store, loaded.fold.calibration_tokens)
    report = fold_dictionary(
        dictionary,
        measured,
        mode=loaded.fold.mode,
        feature_units=loaded.fold.feature_units,
        calibration_batches=StoredBatches.of(store, dictionary, measured, rows, loaded.activations.batch_size),
        convert_topk=loaded.fold.convert_topk_to_jumprelu,
        target_l0=loaded.trainer.steered_l0,
    )
    save_dictionary(report.dictionary, Path(out) / place.name, Origin("fold", made.made_from).to_dict())
    write_json(metrics, report.figures)
    with open_tracker(loaded.tracking, stage="fold", run_file=run) as tracker:
        tracker.log_metrics({key: value for key, value in report.figures.items() if not isinstance(value, str)})
        tracker.log_artifact(metrics, "metrics")


if __name__ == "__main__":
    main()
