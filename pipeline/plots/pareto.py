"""Experiments and members of sweeps compared: L0 against what the reconstruction loses, with the front of those that no other
one beats in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.plots.charts import Group, Point, ScatterChart
from pipeline.plots.experiment import Experiment

PCA_NOTE = "PCA stands at its rank, its directions at each hook point written"
FIGURES = {
    "fvu": ("FVU", "FVU, held out"),
    "delta_ce": ("Delta cross entropy", "nats a token added, held out"),
}


def front(experiments: Sequence[Experiment], loss: Callable[[Experiment], float]) -> list[Experiment]:
    """Those that no other one beats: by growing L0, each with a smaller loss than all before it, or equal in both to the one
    before it."""
    best: list[Experiment] = []
    for experiment in sorted(experiments, key=lambda e: (e.l0, loss(e))):
        last = best[-1] if best else None
        if last is None or loss(experiment) < loss(last) or (experiment.l0, loss(experiment)) == (last.l0, loss(last)):
            best.append(experiment)
    return best


def pareto_charts(experiments: Sequence[Experiment], what: str = "experiment") -> list[ScatterChart]:
    """L0 against FVU and against delta cross entropy, for each site a chart of each.

    Args:
        experiments: those of one site are compared.
        what: they are, for the note.
    """
    note = f"lower left is better; the line joins what no other {what} beats in both"
    sites = list(dict.fromkeys(e.site for e in experiments))
    return [
        _chart(key, [e for e in experiments if e.site == site], f".{i}" if i else "", site if len(sites) > 1 else "", note)
        for i, site in enumerate(sites)
        for key in FIGURES
    ]


def _chart(key: str, own: Sequence[Experiment], place: str, site: str, note: str) -> ScatterChart:
    """The chart of a figure, of the experiments of a site."""
    title, label = FIGURES[key]

    def loss(experiment: Experiment) -> float:
        return float(getattr(experiment, key))

    points, joined = (tuple(Point(e.l0, loss(e), e.name) for e in chosen) for chosen in (own, front(own, loss)))
    groups, x_label = [Group(own[0].site, points, joined)], "mean L0 (active features a token)"
    if baseline := _baseline(own, f"pca_{key}"):
        groups.append(Group("PCA", baseline))
        x_label, note = f"{x_label}; of PCA its rank", f"{note}; {PCA_NOTE}"
    title = f"L0 and {title}" + (f": {site}" if site else "")
    every = [point for group in groups for point in group.points]
    logarithmic = {"x_log": min(p.x for p in every) > 0, "y_log": min(p.y for p in every) > 0}
    return ScatterChart(f"pareto_{key}{place}", title, x_label, label, tuple(groups), note, **logarithmic)


def _baseline(experiments: Sequence[Experiment], key: str) -> tuple[Point, ...]:
    """A point for each rank: PCA at its rank, which is not the L0 where this is a sum over layers."""
    found: dict[float, Point] = {}
    for e in experiments:
        value = getattr(e, key)
        if value is not None and e.pca_rank is not None:
            found.setdefault(e.pca_rank, Point(e.pca_rank, value, f"PCA {e.pca_rank:.0f}"))
    return tuple(found.values())
