"""What is seen first of a run in MLflow: a few metrics whose group sorts before all others, and the run's description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.compared import compared
from pipeline.evaluation.massive import massive_line
from pipeline.metric_names import ordinary
from pipeline.plots.charts import number
from pipeline.plots.training_report import describe

GROUP = "0 headline"
NAMES = {
    "L0": "l0_mean",
    "FVU": "fvu",
    "delta cross entropy": "delta_ce",
    "loss recovered against the mean": "loss_recovered_mean",
    "dead share": "dead_fraction",
}


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """`0 headline/<name>` of the metrics that two runs are compared by, massive tokens left out."""
    return {f"{GROUP}/{name}": metrics[ordinary(metrics, key)] for name, key in NAMES.items()}


def member_headlines(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`<member>/<name>` of the same, for the run that the members' runs lie in."""
    return {f"{member}/{name}": own[ordinary(own, key)] for member, own in metrics.items() for name, key in NAMES.items()}


def note(config: Mapping[str, Any], metrics: Mapping[str, float], *, layers: int = 1) -> str:
    """The run's description, in Markdown: what was trained, and how good it is beside its baselines, on held-out text."""

    def shown(value: float | None) -> str:
        return "" if value is None else number(value)

    rows = []
    for row in compared(metrics):
        ends = f" ({number(row.interval[0])} to {number(row.interval[1])})" if row.interval else ""
        rows.append((row.name, number(row.value) + ends, shown(row.pca), shown(row.mean), shown(row.zero)))
    l0, dead = (metrics[ordinary(metrics, name)] for name in ("l0_mean", "dead_fraction"))
    line = massive_line(metrics, config.get("norms"))
    return "\n".join(
        [
            f"**{describe(config, layers=layers)}**",
            "",
            f"L0 {number(l0)}, dead {100 * dead:.2f} %; on {metrics['evaluated_tokens']:,.0f} held-out tokens.",
            *(() if line is None else ("", f"{line}. FVU, L0 and dead share are of the others.")),
            "",
            f"| | this dictionary (95 %) | PCA of rank {metrics['pca_rank']:.0f} | mean | zero |",
            "|---|---:|---:|---:|---:|",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
    )
