"""The evaluated runs beside those that are like them, in the tracked run of the newest: a page with charts and a table."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Collection, Sequence

from pipeline.documents import FILE, Documents, Kept
from pipeline.plots.comparison import by_site, heading, markdown, tables
from pipeline.plots.experiment import DOCUMENTS, Experiment, read_experiment, told_apart
from pipeline.plots.knee import knee_lines
from pipeline.plots.pareto import FIGURES, pareto_charts
from pipeline.plots.training_report import write_report
from pipeline.tracking.tracker import RunGroup, Tracker

PLOTS = "plots/evaluation"  # where a run has the plots of its evaluation
FIRST = 3  # groups of runs that the note describes, the one of the newest run before others


def log_comparison(tracker: Tracker, run_ids: Collection[str | None]) -> None:
    """Log L0 against FVU and delta cross entropy of these runs and of all that are like them, with PCA in the same chart, to
    the run of the tracker; tables of these and of the newest other groups as the description of all runs together; and which
    are alike.

    Args:
        tracker: of the run; one that knows no other runs logs nothing.
        run_ids: the runs that were evaluated; of a sweep its members.
    """
    rows = [{**row, DOCUMENTS: functools.partial(_documents, tracker, str(row.get("run")))} for row in tracker.rows()]
    found = [(row.get("run"), experiment) for row in rows if (experiment := read_experiment(row)) is not None]
    apart = list(zip([run for run, _ in found], told_apart([experiment for _, experiment in found]), strict=True))
    sites = {experiment.site for run, experiment in apart if run in run_ids}
    like = [experiment for _, experiment in apart if experiment.site in sites]
    if not like:
        return
    charts = pareto_charts(like, "run")
    with tempfile.TemporaryDirectory() as place:
        about, pictures = f"{len(like)} on held-out text", len(FIGURES)
        write_report(place, "Runs beside each other", about, charts, pictures=pictures, tables=tables(like))
        tracker.log_artifact(place, "comparison")
    every = by_site(sorted((experiment for _, experiment in apart), key=lambda e: e.site not in sites))
    first = [e for own in itertools.islice(every.values(), FIRST) for e in own]  # others need not be redrawn
    tracker.describe_experiment("\n".join(markdown(first)), "; ".join(_knees(first)))
    tracker.group_runs(groups([(str(run), experiment) for run, experiment in apart]))


def _knees(experiments: Sequence[Experiment]) -> list[str]:
    """The lines on knees, of several kinds with the kind; brief, as MLflow cuts a folded note."""
    several = len({e.kind for e in experiments}) > 1
    groups_of_runs = by_site(experiments).values()
    return [f"{own[0].kind} {line}" if several else line for own in groups_of_runs for line in knee_lines(own, brief=True)]


def _documents(tracker: Tracker, run: str, _: str) -> Kept:
    """What a run has kept of each document; a member of a sweep is a run of its own."""
    return Kept(lambda: Documents.read(tracker.artifact(run, f"{PLOTS}/{FILE}")))


def groups(runs: Sequence[tuple[str, Experiment]]) -> list[RunGroup]:
    """The runs that can be compared, each group with the losses that it is compared by; by the order of the runs.

    Args:
        runs: (id, what it reached), told apart.
    """
    found: dict[tuple[str, ...], dict[str, Experiment]] = {}
    for run, e in runs:
        found.setdefault((e.kind, e.site, e.revision, e.data, e.evaluated), {})[run] = e
    return [
        RunGroup(
            _about(kind, heading(site, [*own.values()])),
            {run: {"FVU": e.fvu, "delta CE": e.delta_ce} for run, e in own.items()},
        )
        for (kind, site, *_), own in found.items()
    ]


def _about(kind: str, site: str) -> str:
    """The group in words, what tells it from others first, as MLflow cuts long titles: of the model its name, at the end."""
    model, _, others = site.partition(", ")
    return f"{kind}, {others}, {model.rsplit('/', 1)[-1]}"
