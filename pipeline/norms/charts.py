"""Histograms of the activation norms, as charts: of the norm stage, of evaluation and of the dashboard."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pipeline.norms.hook_norm import HookNorm, load_norm_arrays, load_norms
from pipeline.plots.charts import BarChart
from pipeline.plots.histograms import norm_charts


def norm_histograms(
    norms: str | Path, statistics: str | Path, middle: str = "mean_norm", *, hooks: Collection[str] | None = None
) -> list[BarChart]:
    """One chart for each hook point; the limit of the norm is marked where there are tokens beyond it.

    Args:
        norms, statistics: what the norm stage wrote.
        middle: field of HookNorm that is marked: mean_norm or median_norm.
        hooks: hook points that are shown, as far as they are there; None: all.

    Raises:
        DataError: one of the files is missing or damaged.
    """
    arrays = {name: [float(v) for v in x] for name, x in load_norm_arrays(statistics).items() if "norm_histogram" in name}
    shown = {hook: norm for hook, norm in load_norms(norms).items() if hooks is None or hook in hooks}
    return norm_charts(arrays, {hook: _marked(norm, middle) for hook, norm in shown.items()})


def _marked(norm: HookNorm, middle: str) -> dict[str, float | None]:
    limit = {"massive_norm": norm.massive_norm} if norm.max_norm is None else {"max_norm": norm.max_norm}
    return {middle: getattr(norm, middle), **limit}
