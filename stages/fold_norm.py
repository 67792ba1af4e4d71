"""fold: trained weights + norms -> data/inference/<name>/, which takes raw activations.

Of a sweep each member's, in data/inference/<name>/<member>/. Reads data/trained/<name>/, data/norms.json and the rows of the
activation store that were kept from training. Writes the inference dictionary and metrics/fold.json. Cost: seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from pipeline.command import Output, stage_command

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.activations.interface import Activations
    from pipeline.norms.hook_norm import HookNorm
    from pipeline.params.schema import Params


@stage_command
@click.option("--trained", default="data/trained", help="Directory of the trained dictionaries, or a snapshot.")
@click.option("--norms", default="data/norms.json", help="Activation norms.")
@click.option("--activations", default="data/activations.json", help="Manifest of the activation store, or a store.")
@click.option("--out", type=Output(directory=True), default="data/inference", help="Directory of the inference dictionaries.")
@click.option("--metrics", type=Output(), default="metrics/fold.json", help="Figures to write.")
@click.option("--run", default="data/run.json", help="The tracking run to go on with.")
def main(params: str, trained: str, norms: str, activations: str, out: str, metrics: str, run: str) -> None:
    """Fold the activation norm and the decoder norms into the weights, of each member of the sweep if there is one."""
    from pathlib import Path

    from pipeline.dictionaries.store import directory_of
    from pipeline.errors import of_member
    from pipeline.files import members_directory, write_json
    from pipeline.norms.hook_norm import read_norms
    from pipeline.opening import open_activations
    from pipeline.params.loader import load_params
    from pipeline.tracking.opening import open_tracker

    loaded = load_params(params)
    place = directory_of(trained, loaded.dictionary.name)
    store, (measured, origin) = open_activations(activations, device=loaded.model.device), read_norms(norms)
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
            if not member:
                tracker.log_artifact(metrics, "metrics")


def fold_stored(
    params: Params,
    trained: Path,
    out: Path,
    store: Activations,
    measured: Mapping[str, HookNorm],
    inputs: Mapping[str, str | None],
) -> dict[str, Any]:
    """Fold a trained dictionary, check what it was made from, and write its inference form.

    Args:
        params: of it alone.
        trained: its directory.
        out: that of the inference form.
        store: open activations.
        measured: norms of their hook points.
        inputs: {what: digest} that it should have been made from.

    Returns: the figures of metrics/fold.json.

    Raises:
        DataError: it is not there, or was made from something else.
    """
    from pipeline.activations.schema import calibration_rows
    from pipeline.contracts.sealing import Origin
    from pipeline.dictionaries.saving import save_dictionary
    from pipeline.dictionaries.store import load_dictionary
    from pipeline.folding import StoredBatches, fold_dictionary

    dictionary = load_dictionary(trained)
    made = Origin.of(dictionary.config.provenance).check(trained, "train", inputs)
    rows = calibration_rows(store, params.fold.calibration_tokens)
    report = fold_dictionary(
        dictionary,
        measured,
        mode=params.fold.mode,
        feature_units=params.fold.feature_units,
        calibration_batches=StoredBatches.of(store, dictionary, measured, rows, params.activations.batch_size),
        convert_topk=params.fold.convert_topk_to_jumprelu,
        target_l0=params.trainer.steered_l0,
    )
    save_dictionary(report.dictionary, out, Origin("fold", made.made_from).to_dict())
    return report.figures


if __name__ == "__main__":
    main()
