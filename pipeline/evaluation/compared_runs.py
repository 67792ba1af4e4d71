"""The evaluated runs beside those that are like them, in the tracked run of the newest: a page with charts and a table."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence

from pipeline.plots.comparison import HEAD, by_site, cells, heading, tables
from pipeline.plots.experiment import Experiment, read_experiment, told_apart
from pipeline.plots.pareto import FIGURES, pareto_charts
from pipeline.plots.training_report import write_report
from pipeline.tracking.tracker import Tracker


def log_comparison(tracker: Tracker, run_ids: Collection[str | None]) -> None:
    """Log L0 against FVU and delta cross entropy of these runs and of all that are like them, with PCA in the same chart, to
    the run of the tracker; and a table of them as the description of all runs together.

    Args:
        tracker: of the run; one that knows no other runs logs nothing.
        run_ids: the runs that were evaluated; of a sweep its members.
    """
    found = [(row.get("run"), experiment) for row in tracker.rows() if (experiment := read_experiment(row)) is not None]
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
    tracker.describe_experiment("\n".join(markdown(like)))


def markdown(experiments: Sequence[Experiment]) -> list[str]:
    """A table for each site, as Markdown."""
    lines: list[str] = []
    for site, own in by_site(experiments).items():
        columns = (*HEAD, "differs in")
        rows = [[cell.strip().replace("|", "\\|").replace("*", "\\*") for cell in row] for row in cells(own)]
        lines += [f"**{heading(site, own)}** (\\*: no other run has a lower L0 and a lower loss)", ""]
        lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *(f"| {' | '.join(row)} |" for row in rows), ""]
    return lines
