"""analyze: what each feature responds to and what it does, as a feature store and a dashboard.

Reads data/inference/<name>/, data/tokens.zarr, the model, data/norms.json (of a dictionary with its run-time norm), and for
the overview metrics/evaluation.json, metrics/train_history.jsonl and data/norm_statistics.safetensors.
Writes data/features/ (Parquet) and data/dashboard/. Cost: one run of the model over analysis.tokens. Stopped or killed, the
same command goes on; a finished run of the model is not repeated.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.command import Output, stage_command


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
def main(params: str, inference: str, tokens: str, features: str, dashboard: str, run: str, **figures: str) -> None:
    """Collect contexts, densities, logits and neighbours of every feature, and draw the dashboard."""
    from pipeline.analysis.analyze import Inputs, analyzed
    from pipeline.analysis.feature_tables import FeatureStore
    from pipeline.dashboard.folder import SINGLE_PAGE, write_dashboard
    from pipeline.dashboard.overview import OverviewFiles, check_files, overview
    from pipeline.params.loader import load_params
    from pipeline.tracking.opening import open_tracker

    loaded = load_params(params)
    place = Path(inference) / loaded.dictionary.name
    files = OverviewFiles(place, **{name: Path(path) for name, path in figures.items()})
    check_files(files)
    with analyzed(loaded, Inputs(place, tokens, figures["norms"]), features):
        store, single = FeatureStore(features), loaded.analysis.single_page_features
        write_dashboard(dashboard, store, overview(store, files, loaded), single=single)
        with open_tracker(loaded.tracking, stage="analyze", run_file=Path(run)) as tracker:
            if single:
                tracker.log_artifact(Path(dashboard) / SINGLE_PAGE, "dashboard")
                tracker.set_tags({"dashboard": f"artifact dashboard/{SINGLE_PAGE}"})


if __name__ == "__main__":
    main()
