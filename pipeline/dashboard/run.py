"""The dashboard of a run: of one dictionary its pages, of a sweep the pages of each member and a first page of all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.analysis.analyze import Inputs, analyzed, collect
from pipeline.analysis.feature_tables import FeatureStore
from pipeline.dashboard.folder import EXPLANATIONS, SINGLE_PAGE, write_dashboard
from pipeline.dashboard.members import UP, members_page
from pipeline.dashboard.overview import OverviewFiles, check_files, overview
from pipeline.distributed.group import mesh
from pipeline.errors import of_member
from pipeline.evaluation.kept_activations import KEPT_BYTES, KeptActivations
from pipeline.files import atomic_directory
from pipeline.plots.training_report import PAGE
from pipeline.progress import part
from pipeline.tracking.opening import open_tracker

if TYPE_CHECKING:
    from pipeline.lm.language_model import LanguageModel
    from pipeline.params.schema import Params
    from pipeline.processes import Reductions


def collected(
    params: Params,
    places: Mapping[str, Path],
    figures: Mapping[str, str | Path],
    tokens: str | Path,
    processes: Reductions,
) -> None:
    """In several processes: run the models over the contexts of every dictionary, so that :func:`drawn` in the first one finds
    that done. In one process `drawn` does it.

    Args:
        params, places, figures, tokens: as of :func:`drawn`.
        processes: of the stage, data_parallel_size times model_parallel_size.

    Raises:
        DataError, Interrupted: as :func:`drawn`.
    """
    if processes.size == 1:
        return
    _checked(places, figures)
    models: dict[str, LanguageModel] = {}
    kept = _kept(params, processes.size)
    rows, features = mesh(processes, params.distributed)
    for number, (name, member) in enumerate(params.members.items(), 1):
        with of_member(name), part(name, number, len(params.members)):
            inputs = Inputs(places[name], tokens, figures["norms"])
            collect(member, inputs, rows, features, models=models, kept=kept)


def _checked(places: Mapping[str, Path], figures: Mapping[str, str | Path]) -> dict[str, OverviewFiles]:
    """{member: what its overview reads}, which is there."""
    paths = {name: Path(path) for name, path in figures.items()}
    files = {name: OverviewFiles(place, **paths, member=name) for name, place in places.items()}
    for one in files.values():
        check_files(one)
        one.metrics()
    return files


def _kept(params: Params, n_processes: int = 1) -> KeptActivations | None:
    """Where the members of a sweep find the activations on which another one was looked at; None of one dictionary."""
    return None if len(params.members) == 1 else KeptActivations(KEPT_BYTES // n_processes)


@contextlib.contextmanager
def drawn(
    params: Params,
    places: Mapping[str, Path],
    figures: Mapping[str, str | Path],
    *,
    tokens: str | Path,
    features: str | Path,
    dashboard: str | Path,
) -> Iterator[None]:
    """Analyse the dictionaries of a run and write feature stores and pages, all of them or none; of a sweep <member>/ in both
    folders, and index.html beside the members' pages.

    The block is for what is made of the pages. Only when it has ended well are finished runs of the model forgotten: what is
    stopped before goes on without them.

    Args:
        params: of the run.
        places: {member: directory of its inference dictionary}; of one dictionary the name is "".
        figures: what the overview reads: evaluation, history, norms, statistics.
        tokens: the token store.
        features, dashboard: what is written.

    Raises:
        DataError: something of these is missing, damaged, or does not fit the rest.
        Interrupted: a signal asked to stop; the state is saved.
    """
    files = _checked(places, figures)
    single = params.analysis.single_page_features
    models: dict[str, LanguageModel] = {}
    kept = _kept(params)
    shown: dict[str, str] = {}
    whole = contextlib.nullcontext if params.sweep is None else atomic_directory
    with contextlib.ExitStack() as states:
        with whole(features) as stores, whole(dashboard) as pages:
            for number, (name, member) in enumerate(params.members.items(), 1):
                with of_member(name), part(name, number, len(params.members)):
                    inputs, place = Inputs(places[name], tokens, figures["norms"]), Path(stores) / name
                    about = states.enter_context(analyzed(member, inputs, place, models=models, kept=kept))
                    store = FeatureStore(place)
                    up = UP if name else ""
                    about_all, explained = (
                        overview(store, files[name], member),
                        f"{'../' * (2 if name else 1)}{explanations_at(name)}",
                    )
                    write_dashboard(Path(pages) / name, store, about_all, single=single, up=up, interpretations=explained)
                    shown[name] = about["dictionary"]
            if params.sweep is not None:
                metrics = {name: one.metrics() for name, one in files.items()}
                text = members_page(params, metrics, shown, single=single > 0)
                (Path(pages) / PAGE).write_text(text, encoding="utf-8")
        yield


def explanations_at(member: str = "") -> str:
    """Where stages.interpret writes what a dashboard shows of it, below the folder that both are in by default."""
    return f"interpretations/{member}/{EXPLANATIONS}" if member else f"interpretations/{EXPLANATIONS}"


def log_dashboard(params: Params, dashboard: str | Path, run: str | Path) -> None:
    """Log the pages that are one file: to a run its own, to that of a sweep the first page.

    Args:
        params: of the run.
        dashboard: the folder.
        run: file with the ids of the runs.
    """
    for name in params.members:
        with open_tracker(params.tracking, stage="analyze", run_file=Path(run), member=name) as tracker:
            if params.analysis.single_page_features:
                tracker.log_artifact(Path(dashboard) / name / SINGLE_PAGE, "dashboard")
                tracker.set_tags({"dashboard": f"artifact dashboard/{SINGLE_PAGE}"})
    if params.sweep is not None:
        with open_tracker(params.tracking, stage="analyze", run_file=Path(run)) as tracker:
            tracker.log_artifact(Path(dashboard) / PAGE, "dashboard")
            tracker.set_tags({"dashboard": f"artifact dashboard/{PAGE}"})
