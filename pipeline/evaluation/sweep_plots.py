"""The evaluation of a sweep as files to look at: the members compared, and of each what one dictionary has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.evaluation.compared import interval_of
from pipeline.evaluation.plots import write_plots
from pipeline.files import atomic_directory, write_bytes, write_json
from pipeline.metric_names import ordinary
from pipeline.norms.charts import norm_histograms
from pipeline.plots.charts import number
from pipeline.plots.histograms import density_lines
from pipeline.plots.page import Row, Table
from pipeline.plots.pareto import Experiment, member_experiments, pareto_charts
from pipeline.plots.training_report import PAGE, write_report

if TYPE_CHECKING:
    from pipeline.evaluation.measured import Evaluation
    from pipeline.params.schema import Params


def write_sweep_plots(
    folder: str | Path,
    params: Params,
    evaluations: Mapping[str, Evaluation],
    places: Mapping[str, Path],
    *,
    norms: str | Path,
    statistics: str | Path,
) -> None:
    """Write the directory `folder`, whole or not at all; it holds no times.

    - <member>/: what :func:`pipeline.evaluation.plots.write_plots` writes of each.
    - feature_density.safetensors: "<member>/density" and "<member>/mean_when_active".
    - feature_density.json: the rows of all members, each with its "member".
    - pareto_fvu.png, pareto_delta_ce.png, feature_density.png, activation_norm.png, and index.html with all of them and a table
      of the members.

    Args:
        folder: what is there is replaced.
        params: of the run.
        evaluations, places: of each member, and where its dictionary is.
        norms, statistics: what the norm stage wrote.
    """
    from safetensors.torch import load_file, save

    with atomic_directory(folder) as place:
        tensors, rows = {}, []
        for name, evaluation in evaluations.items():
            write_plots(place / name, evaluation, places[name], norms=norms, statistics=statistics, member=True)
            own = load_file(place / name / "feature_density.safetensors")
            tensors |= {f"{name}/{key}": tensor for key, tensor in own.items()}
            histogram = evaluation.histogram
            bins = zip([None, *histogram.edges[:-1]], [histogram.never, *histogram.counts], strict=True)
            rows += [{"member": name, "log10_density": edge, "features": count} for edge, count in bins]
        write_bytes(place / "feature_density.safetensors", save(tensors))
        write_json(place / "feature_density.json", rows)
        metrics = {name: evaluation.metrics for name, evaluation in evaluations.items()}
        experiments = member_experiments(params, metrics)
        density = density_lines(
            {name: (e.histogram.edges, e.histogram.counts, e.histogram.never) for name, e in evaluations.items()}
        )
        charts = [*pareto_charts(experiments, "member"), density, *norm_histograms(norms, statistics)]
        table = members_table(experiments, metrics)
        write_report(place, "Evaluation on held-out text", about_sweep(params), charts, tables=[table])


def about_sweep(params: Params) -> str:
    """The run in a line: `sweep main, 6 members`."""
    n = len(params.members)
    return f"sweep {params.dictionary.name}, {n} member{'s' if n > 1 else ''}"


def members_table(experiments: Sequence[Experiment], metrics: Mapping[str, Mapping[str, float]]) -> Table:
    """The members beside each other, each with a link to its page."""
    columns = ("L0", "FVU (95 %)", "PCA", "delta cross entropy (95 %)", "PCA", "loss recovered", "dead")
    rows = []
    for e in experiments:
        own = metrics[e.name]
        fvu, delta = (_with_interval(own, key) for key in (ordinary(own, "fvu"), "delta_ce"))
        cells = (e.l0, fvu, e.pca_fvu, delta, e.pca_delta_ce, own["loss_recovered_mean"], f"{e.dead:.2%}")
        rows.append(Row(e.name, e.differs or "as the run's parameters", cells, f"{e.name}/{PAGE}"))
    note = "Loss recovered is that against the mean. Intervals: whole documents are drawn again."
    return Table("Members", columns, tuple(rows), note)


def _with_interval(metrics: Mapping[str, float], key: str) -> str:
    ends = interval_of(metrics, key)
    return number(metrics[key]) + (f" ({number(ends[0])} to {number(ends[1])})" if ends else "")
