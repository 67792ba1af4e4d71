"""evaluate: held-out metrics of the inference dictionary, alone and spliced into its language model.

Reads data/inference/<name>/, data/tokens.zarr (the eval split), data/norms.json, data/norm_statistics.safetensors and the
model. Writes metrics/evaluation.json and metrics/plots/evaluation/ (densities of features and norms of activations, as
data, PNG and HTML); says on standard error how many tokens are excluded. Cost: about six runs of the model over the held-out
tokens.
"""

from __future__ import annotations

import click

from pipeline.command import Output, stage_command
from pipeline.interrupts import interruption


@stage_command
@click.option("--inference", default="data/inference", help="Directory of the inference dictionaries.")
@click.option("--tokens", default="data/tokens.zarr", help="Token store.")
@click.option("--norms", default="data/norms.json", help="Activation norms.")
@click.option("--statistics", default="data/norm_statistics.safetensors", help="Activation means and principal directions.")
@click.option("--out", type=Output(), default="metrics/evaluation.json", help="Metrics to write.")
@click.option("--plots", type=Output(directory=True), default="metrics/plots/evaluation", help="Directory of plots to write.")
@click.option("--run", default="data/run.json", help="The tracking run to go on with.")
@interruption("interrupted; run the same command again, it starts anew")
def main(params: str, inference: str, tokens: str, norms: str, statistics: str, out: str, plots: str, run: str) -> None:
    """Measure reconstruction, sparsity and language-model loss on held-out tokens."""
    from pathlib import Path

    from pipeline.dictionaries.store import read_config
    from pipeline.evaluation.headline import headline, note
    from pipeline.evaluation.massive import massive_line
    from pipeline.evaluation.plots import write_plots
    from pipeline.evaluation.saved import evaluate_saved
    from pipeline.files import write_json
    from pipeline.params.loader import load_params
    from pipeline.tracking.opening import open_tracker

    loaded = load_params(params)
    place = Path(inference) / loaded.dictionary.name
    evaluation = evaluate_saved(loaded, place, tokens=tokens, norms=norms, statistics=statistics)
    config = read_config(place)
    if evaluation.metrics["excluded_tokens"]:
        click.echo(massive_line(evaluation.metrics, config.norms), err=True)
    write_json(out, evaluation.metrics)
    write_plots(plots, evaluation, place, norms=norms, statistics=statistics)
    with open_tracker(loaded.tracking, stage="evaluate", run_file=Path(run)) as tracker:
        tracker.log_metrics({**evaluation.metrics, **headline(evaluation.metrics)})
        text = note(config.to_dict(), evaluation.metrics, layers=config.layers)
        tracker.set_tags({"mlflow.note.content": text})
        tracker.log_artifact(out, "metrics")
        tracker.log_artifact(plots, "plots/evaluation")


if __name__ == "__main__":
    main()
