"""The first page of the dashboard: what was trained, how good it is beside its baselines, and plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dashboard.training_rows import training_rows
from pipeline.dictionaries.store import read_config
from pipeline.errors import DataError
from pipeline.evaluation.compared import compared
from pipeline.evaluation.massive import massive_line
from pipeline.metric_files import read_history, read_metrics
from pipeline.metric_names import ordinary
from pipeline.norms.charts import norm_histograms
from pipeline.plots.charts import BarChart, Chart
from pipeline.plots.histograms import density_chart
from pipeline.plots.page import card
from pipeline.plots.training import training_charts

if TYPE_CHECKING:
    from pipeline.analysis.feature_tables import FeatureStore
    from pipeline.params.schema import Params

LOG_STEP = 0.1
# Metrics without which there is no overview.
WANTED = (
    "l0_mean", "dead_fraction", "kl", "kl_zero", "ce_original", "ce_spliced", "ce_mean", "ce_zero", "cosine_similarity",
    "pca_rank", "evaluated_tokens", "fvu", "pca_fvu", "zero_fvu", "delta_ce", "pca_delta_ce", "loss_recovered_mean",
    "loss_recovered_zero",
)  # fmt: skip


@dataclass(frozen=True)
class OverviewFiles:
    """What the overview reads.

    Attributes:
        dictionary: directory of the inference dictionary.
        evaluation: metrics of the evaluation. history: of the training. norms, statistics: of the norm stage.
        member: of a sweep, whose part of these files it is; "": they are of one dictionary.
    """

    dictionary: Path
    evaluation: Path
    history: Path
    norms: Path
    statistics: Path
    member: str = ""

    def metrics(self) -> dict[str, Any]:
        """Of the evaluation.

        Raises:
            DataError: they are missing or damaged, or of other dictionaries.
        """
        return read_metrics(self.evaluation, "the evaluation", "run `dvc repro evaluate`", WANTED, member=self.member)


def check_files(files: OverviewFiles) -> None:
    """Notice before a long pass that something the overview needs is not there.

    Raises:
        DataError: the first that is missing.
    """
    stages = {"evaluation": "evaluate", "history": "train", "norms": "norm", "statistics": "norm"}
    for name, stage in stages.items():
        path: Path = getattr(files, name)
        if not path.is_file():
            raise DataError(f"{path}: the dashboard shows it, and it is missing; run `dvc repro -s -f {stage}`")


def overview(store: FeatureStore, files: OverviewFiles, params: Params | None = None) -> dict[str, Any]:
    """The overview as plain values: title, about, metrics (rows of a table with baselines), how many tokens were massive, the
    rank of its PCA, hook_table, figures, training, charts (HTML).

    Args:
        store: the feature store.
        files: what the stages before wrote.
        params: names the data set and the norm of the training.

    Raises:
        DataError: one of them is missing or damaged.
    """
    metrics = files.metrics()
    about = store.about
    own = {*about["hook_points_in"], *about["hook_points_out"]}
    rows = store.features(["density", "max_activation", "threshold", "logit_kurtosis"])
    charts = [
        *feature_charts(rows, metrics[ordinary(metrics, "l0_mean")]),
        *norm_histograms(files.norms, files.statistics, hooks=own),
        *training_charts(read_history(files.history, "run `dvc repro train`", member=files.member)),
    ]
    config = read_config(files.dictionary).to_dict()
    return {
        "title": about["name"],
        "about": about["dictionary"],
        "seen": seen(about),
        "metrics": [list(row) for row in compared(metrics)],
        "massive": massive_line(metrics, config.get("norms")),
        "pca_rank": metrics["pca_rank"],
        "hook_table": hook_table(metrics, about["hook_points_in"], about["hook_points_out"]),
        "figures": figures(metrics, rows, layers=len(about["feature_shape"]) > 1),
        "training": training_rows(config, params),
        "charts": [card(chart) for chart in charts],
        "hooks": about["hook_points_out"],
        "logit_softcap": about.get("logit_softcap"),
        "shape": about["feature_shape"],
        "edges": [about["histogram_edges"][0], about["histogram_edges"][1] / about["histogram_edges"][0]],
        "coactivation_tokens": about["coactivation_tokens"],
    }


def seen(about: Mapping[str, Any]) -> str:
    """The tokens that features were looked at on; feature stores of before do not say how many were excluded."""
    tokens = f"{about['tokens']:,} tokens of the {about['split']} split"
    excluded = about.get("excluded_tokens", 0)
    return tokens if not excluded else f"{tokens}, without {excluded:,} massive ones"


def hook_table(metrics: Mapping[str, float], read: Sequence[str], written: Sequence[str]) -> dict[str, Any] | None:
    """A row for each written hook point, {"columns", "rows": [[hook, value, ...]]}: its FVU beside that of PCA, the loss where
    it alone is replaced by the reconstruction, PCA or the mean, and L0 and dead share of the layer that reads at its place
    (with layers). None: there is one only.
    """
    if len(written) < 2:
        return None
    layers = read if len(read) == len(written) else [""] * len(written)

    def keys(name: str, places: Sequence[str]) -> list[str]:
        return [ordinary(metrics, f"{name}.{place}") for place in places]

    columns = {
        "FVU": keys("fvu", written),
        "FVU of the PCA": keys("pca_fvu", written),
        "delta cross entropy": [f"delta_ce.{hook}" for hook in written],
        "of the PCA": [f"pca_delta_ce.{hook}" for hook in written],
        "loss recovered against the mean": [f"loss_recovered_mean.{hook}" for hook in written],
        "L0": keys("l0_mean", layers),
        "dead on held-out text (share)": keys("dead_fraction", layers),
    }
    there = {name: found for name, found in columns.items() if any(key in metrics for key in found)}
    rows = [[hook, *(metrics.get(found[i]) for found in there.values())] for i, hook in enumerate(written)]
    return {"columns": list(there), "rows": rows}


def figures(metrics: Mapping[str, float], rows: Sequence[Mapping[str, Any]], *, layers: bool = False) -> list[list[Any]]:
    """[name, value] of what else describes the dictionary; densities are over the analysed tokens. With layers L0 is the sum of
    theirs.
    """
    density = [row["density"] for row in rows]
    return [
        ["L0 (all layers)" if layers else "L0 (held out)", metrics[ordinary(metrics, "l0_mean")]],
        ["features", len(rows)],
        ["never active here", sum(d == 0 for d in density)],
        ["active on more than 10 % of the tokens", sum(d > 0.1 for d in density)],
        ["dead on held-out text", f"{metrics[ordinary(metrics, 'dead_fraction')]:.2%}"],
        ["cross entropy of the model", metrics["ce_original"]],
        ["cross entropy, spliced", metrics["ce_spliced"]],
        ["cosine similarity", metrics["cosine_similarity"]],
        ["rank of the PCA", metrics["pca_rank"]],
        ["held-out tokens", metrics["evaluated_tokens"]],
    ]


def feature_charts(rows: Sequence[Mapping[str, Any]], l0_mean: float) -> list[Chart]:
    """Features by density, by maximum, by threshold where there is one, and by kurtosis of their logits."""
    density = [row["density"] for row in rows if row["density"] > 0]
    edges, counts = log_bins(density)
    charts: list[Chart] = [density_chart([math.log10(edge) for edge in edges], counts, len(rows) - len(density), l0_mean)]
    charts.append(
        _bars("maximum", "Largest activations", "largest activation of a feature", [r["max_activation"] for r in rows])
    )
    thresholds = [row["threshold"] for row in rows if row["threshold"] is not None]
    if thresholds:
        charts.append(_bars("threshold", "Thresholds", "threshold of a feature", thresholds))
    kurtosis = [row["logit_kurtosis"] for row in rows if row["logit_kurtosis"] is not None]
    title = "Peaked logits (excess kurtosis above 0)"
    charts.append(_bars("kurtosis", title, "excess kurtosis of what a feature adds to the logits", kurtosis))
    return [chart for chart in charts if sum(chart.counts)]  # type: ignore[union-attr]


def _bars(name: str, title: str, x_label: str, values: Sequence[float]) -> BarChart:
    shown = [value for value in values if value > 0]
    edges, counts = log_bins(shown)
    missing = len(values) - len(shown)
    note = f"not shown: {missing:,} of {len(values):,} features, at or below 0" if missing else ""
    return BarChart(name, title, x_label, "features", tuple(edges), tuple(counts), x_log=True, note=note)


def log_bins(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Edges and counts of positive values in bins of a tenth of a decade."""
    places = [math.floor(math.log10(value) / LOG_STEP) for value in values]
    if not places:
        return [1.0, 10.0**LOG_STEP], [0.0]
    low, high = min(places), max(places)
    counts = [0.0] * (high - low + 1)
    for place in places:
        counts[place - low] += 1
    return [10.0 ** (LOG_STEP * (low + i)) for i in range(len(counts) + 1)], counts
