"""analyze: what each feature responds to and what it does, as a feature store and a dashboard; of a sweep those of each member,
and a first page of all.

Reads data/inference/<name>/, data/tokens.zarr, the model, data/norms.json (of a dictionary with its run-time norm), and for
the overview metrics/evaluation.json, metrics/train_history.jsonl and data/norm_statistics.safetensors.
Writes data/features/ (Parquet) and data/dashboard/, of a sweep <member>/ in both. Cost: one run of the model over
analysis.tokens, of a sweep one a member. Stopped or killed, the same command goes on; a finished run of the model is not
repeated.
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
    import contextlib

    from pipeline.analysis.analyze import Inputs, analyzed
    from pipeline.analysis.feature_tables import FeatureStore
    from pipeline.dashboard.folder import SINGLE_PAGE, write_dashboard
    from pipeline.dashboard.members import UP, write_members_page
    from pipeline.dashboard.overview import OverviewFiles, check_files, overview
    from pipeline.dictionaries.places import dictionary_places
    from pipeline.errors import of_member
    from pipeline.files import atomic_directory
    from pipeline.params.loader import load_params
    from pipeline.plots.training_report import PAGE
    from pipeline.tracking.opening import open_tracker

    loaded, paths = load_params(params), {name: Path(path) for name, path in figures.items()}
    places = dictionary_places(loaded, inference)
    files = {name: OverviewFiles(place, **paths, member=name) for name, place in places.items()}
    for one in files.values():
        check_files(one)
    single, models, shown = loaded.analysis.single_page_features, {}, {}
    whole = atomic_directory if loaded.sweep else contextlib.nullcontext
    with contextlib.ExitStack() as states:  # until all is in its place, no finished run of the model is forgotten
        with whole(features) as stores, whole(dashboard) as pages:
            for name, member in loaded.members.items():
                store_place, page_place = Path(stores) / name, Path(pages) / name
                with of_member(name):
                    inputs = Inputs(places[name], tokens, figures["norms"])
                    about = states.enter_context(analyzed(member, inputs, store_place, models=models))
                    store = FeatureStore(store_place)
                    found = overview(store, files[name], member)
                    write_dashboard(page_place, store, found, single=single, up=UP if name else "")
                    shown[name] = about["dictionary"]
            if loaded.sweep:
                write_members_page(Path(pages), loaded, {name: one.metrics() for name, one in files.items()}, shown)
        for name in loaded.members:
            with open_tracker(loaded.tracking, stage="analyze", run_file=Path(run), member=name) as tracker:
                if single:
                    tracker.log_artifact(Path(dashboard) / name / SINGLE_PAGE, "dashboard")
                    tracker.set_tags({"dashboard": f"artifact dashboard/{SINGLE_PAGE}"})
        if loaded.sweep:
            with open_tracker(loaded.tracking, stage="analyze", run_file=Path(run)) as tracker:
                tracker.log_artifact(Path(dashboard) / PAGE, "dashboard")
                tracker.set_tags({"dashboard": f"artifact dashboard/{PAGE}"})


if __name__ == "__main__":
    main()
