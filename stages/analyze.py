"""analyze: what each feature responds to and what it does, as a feature store and a dashboard; of a sweep those of each member,
and a first page of all.

Reads data/inference/<name>/, data/tokens.zarr, the model, data/norms.json (of a dictionary with its run-time norm), and for
the overview metrics/evaluation.json, metrics/train_history.jsonl and data/norm_statistics.safetensors.
Writes data/features/ (Parquet) and data/dashboard/, of a sweep <member>/ in both. Cost: one run of the model over
analysis.tokens, of a sweep one a member. Stopped or killed, the same command goes on; a finished run of the model is not
repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.command import Output, stage_command
from pipeline.distributed.stage import in_processes
from pipeline.params.loader import tracking_of
from pipeline.tracking.outcome import outcome_told

if TYPE_CHECKING:
    from pipeline.params.schema import Params
    from pipeline.processes import Reductions


@stage_command
@click.option("--inference", default="data/inference", help="Directory of the inference dictionaries.")
@click.option("--tokens", default="data/tokens.zarr", help="Token store.")
@click.option("--norms", default="data/norms.json", help="Activation norms.")
@click.option("--statistics", default="data/norm_statistics.safetensors", help="Activation means and principal directions.")
@click.option("--evaluation", default="metrics/evaluation.json", help="Metrics to show.")
@click.option("--history", default="metrics/train_history.jsonl", help="Training history to show.")
@click.option("--features", type=Output(directory=True), default="data/features", help="Feature store to write.")
@click.option("--dashboard", type=Output(directory=True), default="data/dashboard", help="Dashboard to write.")
@click.option("--run", default="data/run.json", help="The tracking run to go on with.")
@outcome_told("analyze", tracking_of)
@in_processes("analyze")
def main(
    params: Params, processes: Reductions, inference: str, tokens: str, features: str, dashboard: str, run: str, **figures: str
) -> None:
    """Collect contexts, densities, logits and neighbours of every feature, and draw the dashboard."""
    from pipeline.dashboard.run import collected, drawn, log_dashboard
    from pipeline.dictionaries.places import dictionary_places
    from pipeline.planning.beginning import begin

    if processes.rank == 0:
        begin("analyze", params, tokens)
    places = dictionary_places(params, inference)
    collected(params, places, figures, tokens, processes)
    if processes.rank == 0:
        with drawn(params, places, figures, tokens=tokens, features=features, dashboard=dashboard):
            log_dashboard(params, dashboard, run)


if __name__ == "__main__":
    main()
