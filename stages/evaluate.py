"""evaluate: held-out metrics of the inference dictionary, alone and spliced into its language model; of a sweep those of all
members, in one pass.

Reads data/inference/<name>/ (of a sweep <name>/<member>/), data/tokens.zarr (the eval split), data/norms.json,
data/norm_statistics.safetensors and the model. Writes metrics/evaluation.json and metrics/plots/evaluation/ (densities of
features and norms of activations, as data, PNG and HTML), of a sweep {member: metrics} and a directory a member; says on
standard error how many tokens are excluded. Cost: about six runs of the model over the held-out tokens, and one or two for
each further member.
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

    from pipeline.dictionaries.places import dictionary_places
    from pipeline.dictionaries.store import read_config
    from pipeline.evaluation.headline import headline, member_headlines, note
    from pipeline.evaluation.massive import massive_line
    from pipeline.evaluation.plots import write_plots
    from pipeline.evaluation.saved import evaluate_together
    from pipeline.evaluation.sweep_plots import write_sweep_plots
    from pipeline.files import write_json
    from pipeline.params.loader import load_params
    from pipeline.tracking.opening import open_tracker

    loaded = load_params(params)
    places = dictionary_places(loaded, inference)
    evaluations = evaluate_together(loaded, places, tokens=tokens, norms=norms, statistics=statistics)
    configs = {name: read_config(place) for name, place in places.items()}
    metrics = {name: evaluation.metrics for name, evaluation in evaluations.items()}
    for name, found in metrics.items():
        if found["excluded_tokens"]:
            click.echo(f"{name}: " * bool(name) + str(massive_line(found, configs[name].norms)), err=True)
    if loaded.sweep is None:
        write_json(out, metrics[""])
        write_plots(plots, evaluations[""], places[""], norms=norms, statistics=statistics)
    else:
        write_json(out, metrics)
        write_sweep_plots(plots, loaded, evaluations, places, norms=norms, statistics=statistics)
        with open_tracker(loaded.tracking, stage="evaluate", run_file=Path(run)) as tracker:
            tracker.log_metrics(member_headlines(metrics))
            tracker.log_artifact(out, "metrics")
            tracker.log_artifact(plots, "plots/evaluation")
    for name, config in configs.items():
        with open_tracker(loaded.tracking, stage="evaluate", run_file=Path(run), member=name) as tracker:
            tracker.log_metrics({**metrics[name], **headline(metrics[name])})
            text = note(config.to_dict(), metrics[name], layers=config.layers)
            tracker.set_tags({"mlflow.note.content": text})
            if not name:
                tracker.log_artifact(out, "metrics")
            tracker.log_artifact(Path(plots) / name, "plots/evaluation")


if __name__ == "__main__":
    main()
