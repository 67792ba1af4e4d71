"""evaluate: held-out metrics of the inference dictionary, alone and spliced into its language model; of a sweep those of all
members, in one pass.

Reads data/inference/<name>/ (of a sweep <name>/<member>/), data/tokens.zarr (the eval split), data/norms.json,
data/norm_statistics.safetensors and the model. Writes metrics/evaluation.json and metrics/plots/evaluation/ (densities of
features and norms of activations, as data, PNG and HTML; sums of each document, by which runs are compared), of a sweep
{member: metrics} and a directory a member; says on standard error how many tokens are excluded, and what was not measured.
Cost: about six runs of the model over the held-out tokens, and one or two for each further member.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.command import Output, stage_command
from pipeline.distributed.stage import in_processes
from pipeline.interrupts import interruption
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
@click.option("--out", type=Output(), default="metrics/evaluation.json", help="Metrics to write.")
@click.option("--plots", type=Output(directory=True), default="metrics/plots/evaluation", help="Directory of plots to write.")
@click.option("--run", default="data/run.json", help="The tracking run to go on with.")
@outcome_told("evaluate", tracking_of)
@interruption("interrupted; run the same command again, it starts anew")
@in_processes("evaluate")
def main(params: Params, processes: Reductions, inference: str, tokens: str, run: str, **files: str) -> None:
    """Measure reconstruction, sparsity and language-model loss on held-out tokens."""
    from pipeline.dictionaries.places import dictionary_places
    from pipeline.evaluation.results import log_results, notices, write_results
    from pipeline.evaluation.saved import evaluate_together
    from pipeline.planning.beginning import begin

    if processes.rank == 0:
        begin("evaluate", params, tokens)
    places, norms, statistics = dictionary_places(params, inference), files["norms"], files["statistics"]
    found = evaluate_together(params, places, tokens=tokens, norms=norms, statistics=statistics, processes=processes)
    if processes.rank == 0:
        for line in notices(found, places):
            click.echo(line, err=True)
        write_results(params, found, places, **files)
        log_results(params, found, places, run=run, out=files["out"], plots=files["plots"])


if __name__ == "__main__":
    main()
