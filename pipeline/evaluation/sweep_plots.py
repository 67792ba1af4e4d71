"""The evaluation of a sweep as files to look at: the members compared, and of each what one dictionary has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.members import about_sweep, member_experiments, members_table
from pipeline.evaluation.plots import write_plots
from pipeline.files import atomic_directory, write_bytes, write_json
from pipeline.norms.charts import norm_histograms
from pipeline.plots.charts import Chart
from pipeline.plots.histograms import density_lines
from pipeline.plots.pareto import pareto_charts
from pipeline.plots.training_report import write_report

if TYPE_CHECKING:
    from torch import Tensor

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
        tensors: dict[str, Tensor] = {}
        rows: list[dict[str, Any]] = []
        for name, evaluation in evaluations.items():
            write_plots(place / name, evaluation, places[name], norms=norms, statistics=statistics)
            own = load_file(place / name / "feature_density.safetensors")
            tensors |= {f"{name}/{key}": tensor for key, tensor in own.items()}
            histogram = evaluation.histogram
            bins = zip([None, *histogram.edges[:-1]], [histogram.never, *histogram.counts], strict=True)
            rows += [{"member": name, "log10_density": edge, "features": count} for edge, count in bins]
        write_bytes(place / "feature_density.safetensors", save(tensors))
        write_json(place / "feature_density.json", rows)
        metrics = {name: evaluation.metrics for name, evaluation in evaluations.items()}
        documents = {name: evaluation.documents for name, evaluation in evaluations.items()}
        experiments = member_experiments(params, metrics, documents)
        density = density_lines(
            {name: (e.histogram.edges, e.histogram.counts, e.histogram.never) for name, e in evaluations.items()}
        )
        charts: list[Chart] = [*pareto_charts(experiments, "member"), density, *norm_histograms(norms, statistics)]
        table = members_table(experiments, metrics)
        write_report(place, "Evaluation on held-out text", about_sweep(params), charts, tables=[table])
