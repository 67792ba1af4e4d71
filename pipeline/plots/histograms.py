"""Histograms: how often each feature is active, where it writes, and how long the activations are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from pipeline.plots.charts import BarChart, Line, LineChart, number

NORM_BINS = 90
MOST_LINES = 6
POSITION_BINS = 128
# What is marked of a hook point's norms, and how it is called.
NORM_MARKS = {"mean_norm": "mean", "median_norm": "median", "max_norm": "excluded above", "massive_norm": "massive above"}
LIMITS = ("max_norm", "massive_norm")
FEW = 100  # more tokens at one position than this, and those of the others are seen on a logarithmic scale only


def density_chart(edges: Sequence[float], counts: Sequence[float], never: int, l0_mean: float | None = None) -> BarChart:
    """Features by log10 of the share of tokens on which they are active.

    Args:
        edges: m + 1 edges of bins, log10 of the density.
        counts: m numbers of features.
        never: features that were never active, which no bin holds.
        l0_mean: mean L0; marks the mean density, L0 / number of features, with its value.
    """
    total = int(sum(counts)) + never
    edges, counts = _trimmed(edges, counts)
    marks = []
    if l0_mean and total and edges[0] <= math.log10(l0_mean / total) <= edges[-1]:
        marks.append((math.log10(l0_mean / total), f"mean density {number(l0_mean / total)}"))
    if edges[0] <= -1.0 < edges[-1]:
        marks.append((-1.0, "dense: above 0.1"))
    return BarChart(
        name="feature_density",
        title="Feature density",
        x_label="log10 of the share of tokens on which a feature is active",
        y_label="features",
        edges=tuple(edges),
        counts=tuple(counts),
        marks=tuple(marks),
        note=f"never active: {never:,} of {total:,} features",
    )


def density_lines(histograms: Mapping[str, tuple[Sequence[float], Sequence[float], int]]) -> LineChart:
    """Shares of the features of several dictionaries by log10 of their density, a line for each of the first MOST_LINES.

    Args:
        histograms: {name: edges, counts, never as in :func:`density_chart`}, all of the same edges.
    """
    shown = dict(list(histograms.items())[:MOST_LINES])
    every = [sum(each) for each in zip(*(counts for _, counts, _ in shown.values()), strict=True)]
    lines = []
    for name, (edges, counts, never) in shown.items():
        total = sum(counts) + never
        first, last = edges.index(_trimmed(edges, every)[0][0]), edges.index(_trimmed(edges, every)[0][-1])
        middles = [(low + high) / 2 for low, high in pairwise(edges[first : last + 1])]
        lines.append(Line(name, tuple(middles), tuple(count / total for count in counts[first:last])))
    more = len(histograms) - len(shown)
    return LineChart(
        name="feature_density",
        title="Feature density",
        x_label="log10 of the share of tokens on which a feature is active",
        y_label="share of the features",
        lines=tuple(lines),
        note=f"{more} more are in pages of their own" if more else "",
    )


def norm_chart(
    hook_point: str, edges: Sequence[float], counts: Sequence[float], norms: Mapping[str, float | None] | None = None
) -> BarChart:
    """Tokens by the L2 norm of their activation at a hook point, in at most 90 bins of equal ratio.

    Args:
        hook_point: where.
        edges: m + 1 ascending positive edges of bins; neighbours are joined.
        counts: m numbers of tokens.
        norms: {"mean_norm", "median_norm", "max_norm" (longer tokens are excluded), "massive_norm" (they are massive): norm},
            as many as are to be marked; of the latter two one that lies inside, and then few tokens are beyond it, so that y
            is logarithmic.
    """
    edges, counts = rebinned(edges, counts, NORM_BINS)
    stated = {name: norms[name] for name in NORM_MARKS if name in norms} if norms else {}
    inside = {name: x for name, x in stated.items() if x is not None and (name not in LIMITS or edges[0] <= x <= edges[-1])}
    return BarChart(
        name=f"activation_norm.{_file_name(hook_point)}",
        title=f"Activation norm at {hook_point}",
        x_label="L2 norm of the activation (model's units)",
        y_label="tokens",
        edges=tuple(edges),
        counts=tuple(counts),
        x_log=True,
        y_log=any(name in LIMITS for name in inside),
        marks=tuple((x, f"{NORM_MARKS[name]} {x:.4g}") for name, x in inside.items()),
        note=f"{int(sum(counts)):,} tokens",
    )


def norm_charts(statistics: Mapping[str, Sequence[float]], norms: Mapping[str, Mapping[str, float | None]]) -> list[BarChart]:
    """One chart for each hook point of data/norms.json.

    Args:
        statistics: arrays of data/norm_statistics.safetensors ("<hook>/norm_histogram_edges" and "..._counts").
        norms: {hook point: what is marked}, see :func:`norm_chart`.
    """
    return [
        norm_chart(
            hook,
            [float(edge) for edge in statistics[f"{hook}/norm_histogram_edges"]],
            [float(count) for count in statistics[f"{hook}/norm_histogram_counts"]],
            norm,
        )
        for hook, norm in sorted(norms.items())
    ]


def position_chart(hook_point: str, positions: Mapping[int, int], context_size: int) -> BarChart:
    """Massive tokens by their position in the context, in at most 128 bins of equally many positions.

    Args:
        hook_point: where they are massive.
        positions: {position: tokens}; at least one.
        context_size: positions in a context.
    """
    every = [float(positions.get(i, 0)) for i in range(context_size)]
    edges, counts = rebinned([float(i) for i in range(context_size + 1)], every, POSITION_BINS)
    return BarChart(
        name=f"massive_positions.{_file_name(hook_point)}",
        title=f"Massive tokens by position at {hook_point}",
        x_label="position in the context",
        y_label="tokens",
        edges=tuple(edges),
        counts=tuple(counts),
        y_log=max(counts) > FEW,
        whole=True,
        note=f"{sum(positions.values()):,} massive tokens at {len(positions):,} of {context_size:,} positions",
    )


def share_charts(shares: Mapping[str, Sequence[int]]) -> list[BarChart]:
    """One chart for each written hook point of a dictionary that writes several: features by how much of what they write is
    there.

    Args:
        shares: {hook point: features in equal bins from 0 to 1}.
    """
    charts = []
    for hook, counts in shares.items():
        edges = tuple(i / len(counts) for i in range(len(counts) + 1))
        charts.append(
            BarChart(
                name=f"written_share.{_file_name(hook)}",
                title=f"Where features write: {hook}",
                x_label="share of a feature's decoder norm that is here",
                y_label="features",
                edges=edges,
                counts=tuple(float(count) for count in counts),
                note="1: of this hook point alone; 0: does not write here (norms relative to the mean activation of each)",
            )
        )
    return charts


def _file_name(hook_point: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in hook_point)


def rebinned(edges: Sequence[float], counts: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """Join equally many neighbours so that at most `most` bins are left; every count stays, the last bin may be narrower."""
    size = max(1, math.ceil(len(counts) / most))
    joined = [math.fsum(counts[i : i + size]) for i in range(0, len(counts), size)]
    if not joined:
        return [1.0, 10.0], [0.0]
    return [*edges[: len(counts) : size], edges[-1]], joined


def _trimmed(edges: Sequence[float], counts: Sequence[float]) -> tuple[list[float], list[float]]:
    """Without the empty bins at both ends, but one."""
    filled = [i for i, count in enumerate(counts) if count]
    if not filled:
        return list(edges), list(counts)
    first, last = max(filled[0] - 1, 0), min(filled[-1] + 2, len(counts))
    return list(edges[first : last + 1]), list(counts[first:last])
