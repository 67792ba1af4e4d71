"""An evaluation as files to look at: feature densities, activation norms, and a page with the figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.dictionaries.store import read_config
from pipeline.documents import FILE
from pipeline.evaluation.massive import massive_line
from pipeline.evaluation.tables import compared_table, metric_tables
from pipeline.files import atomic_directory, write_bytes, write_json
from pipeline.metric_names import ordinary
from pipeline.norms.charts import norm_histograms
from pipeline.plots.histograms import density_chart, share_charts
from pipeline.plots.training_report import describe, write_report

if TYPE_CHECKING:
    from pipeline.evaluation.measured import Evaluation


def write_plots(
    folder: str | Path,
    evaluation: Evaluation,
    dictionary: str | Path,
    *,
    norms: str | Path,
    statistics: str | Path,
) -> None:
    """Write the directory `folder`, whole or not at all; it holds no times.

    - feature_density.safetensors: "density" and "mean_when_active", float64 of the dictionary's feature shape.
    - feature_density.json: the histogram over the tokens that are not massive, one {"log10_density": lower edge, "features":
      count} a bin, and before them the features that were never active, with log10_density null.
    - written_share.json, of several written hook points: {hook point: features in equal bins of the share of what they write
      that is there, 0 to 1}.
    - documents.json: sums of each evaluated document, and a digest of these (pipeline/documents.py).
    - feature_density.png, activation_norm.png, written_share.png, and index.html with all of them and every metric, defined.

    Args:
        folder: what is there is replaced.
        evaluation: of the dictionary.
        dictionary: its directory; the heading is made of its configuration.
        norms, statistics: what the norm stage wrote; the norms of the dictionary's own hook points are shown.
    """
    from safetensors.torch import save

    histogram, metrics = evaluation.histogram, evaluation.metrics
    bins = [
        {"log10_density": edge, "features": count} for edge, count in zip(histogram.edges[:-1], histogram.counts, strict=True)
    ]
    l0_mean = metrics[ordinary(metrics, "l0_mean")]
    density = density_chart(histogram.edges, histogram.counts, histogram.never, l0_mean)
    config = read_config(dictionary)
    lengths = norm_histograms(norms, statistics, hooks={*config.hooks_in, *config.hooks_out})
    first = [compared_table(metrics, massive_line(metrics, config.norms))]
    every = metric_tables(metrics, config.hooks_in, config.hooks_out)
    with atomic_directory(folder) as place:
        tensors = {"density": evaluation.density, "mean_when_active": evaluation.mean_when_active}
        write_bytes(place / "feature_density.safetensors", save({name: t.contiguous() for name, t in tensors.items()}))
        write_json(place / "feature_density.json", [{"log10_density": None, "features": histogram.never}, *bins])
        if evaluation.shares:
            write_json(place / "written_share.json", evaluation.shares)
        if evaluation.documents is not None:
            write_bytes(place / FILE, evaluation.documents.content())
        charts = [density, *share_charts(evaluation.shares), *lengths]
        title, about = "Evaluation on held-out text", describe(config.to_dict(), layers=config.layers)
        write_report(place, title, about, charts, tables=first, more=every)
