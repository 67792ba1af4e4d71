"""What is seen first of a run in MLflow: a few metrics whose group sorts before all others, and the run's description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.compared import compared
from pipeline.evaluation.massive import massive_line
from pipeline.extent import Extent
from pipeline.metric_names import HEADLINE, ordinary
from pipeline.plots.charts import number
from pipeline.plots.training_report import describe

DIGITS = 4  # of these figures, which fill narrow columns; the group `evaluation` has all digits


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """{name: figure} that two runs are compared by, massive tokens left out."""
    return {name: _short(metrics[ordinary(metrics, key)]) for name, key in HEADLINE.items()}


def member_headlines(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`<member>/<name>` of the same, for the run that the members' runs lie in."""
    return {
        f"{member}/{name.rpartition('/')[2]}": value for member, own in metrics.items() for name, value in headline(own).items()
    }


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _documents(metrics: Mapping[str, float]) -> str:
    """` of 5 text files (95 % intervals are rough ...)`; "" of an evaluation that has not counted them."""
    extent = Extent.of(metrics)
    if extent is None:
        return ""
    return f" of {extent.words()}" + (f" ({warning})" if (warning := extent.warning()) else "")


def note(config: Mapping[str, Any], metrics: Mapping[str, float], *, layers: int = 1) -> str:
    """The run's description, in Markdown: what was trained, and how good it is beside its baselines, on held-out text."""

    def shown(value: float | None) -> str:
        return "" if value is None else number(value)

    rows = []
    for row in compared(metrics):
        ends = f" ({number(row.interval[0])} to {number(row.interval[1])})" if row.interval else ""
        rows.append((row.name, number(row.value) + ends, shown(row.pca), shown(row.mean), shown(row.zero)))
    l0, fvu, dead = (metrics[ordinary(metrics, name)] for name in ("l0_mean", "fvu", "dead_fraction"))
    pca_fvu = metrics[ordinary(metrics, "pca_fvu")]
    first = f"L0 {number(l0)}, FVU {number(fvu)} (PCA {number(pca_fvu)}), delta CE {number(metrics['delta_ce'])} "
    first += f"(PCA {number(metrics['pca_delta_ce'])}), dead {100 * dead:.2f} %"
    line = massive_line(metrics, config.get("norms"))
    return "\n".join(
        [
            f"**{describe(config, layers=layers)}**",
            "",
            f"{first}; on {metrics['evaluated_tokens']:,.0f} held-out tokens{_documents(metrics)}.",
            *(() if line is None else ("", f"{line}. FVU, L0 and dead share are of the others.")),
            "",
            f"| | this dictionary (95 %) | PCA of rank {metrics['pca_rank']:.0f} | mean | zero |",
            "|---|---:|---:|---:|---:|",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
    )
