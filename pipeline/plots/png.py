"""Charts as PNG files by matplotlib; equal charts give equal bytes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from pipeline.plots.charts import (
    Axis,
    BarChart,
    Chart,
    LineChart,
    ScatterChart,
    axes,
    axis_labels,
    mark_sides,
    number,
    segments,
)
from pipeline.plots.point_labels import point_labels

COLORS = ("#2563a8", "#d9622b", "#2a8c5a", "#8a55b5", "#b83253", "#6b7280")
TEXT, FAINT, GRID = "#1f2430", "#5b6270", "#e3e6eb"
SIZE, DOTS_PER_INCH = (7.2, 4.3), 130
LINE = 115  # characters of a note that fit side by side
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": "#9aa1ad",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a dollar in a name is a dollar
}


def png(charts: Sequence[Chart], about: str = "") -> bytes:
    """The charts, one below the other, as a PNG file.

    Args:
        charts: what they show; at least one.
        about: what they are of, a line below each title.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(SIZE[0], SIZE[1] * len(charts)), dpi=DOTS_PER_INCH, layout=None)
        FigureCanvasAgg(figure)
        for i, chart in enumerate(reversed(charts)):
            _panel(figure, chart, about, i / len(charts), 1 / len(charts))
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _panel(figure: Any, chart: Chart, about: str, bottom: float, height: float) -> None:
    plane = figure.add_axes((0.115, bottom + 0.125 * height, 0.855, 0.665 * height))
    x_axis, y_axis = axes(chart)
    _scale(plane, x_axis, y_axis)
    if isinstance(chart, BarChart):
        _bars(plane, chart, x_axis, y_axis)
    elif isinstance(chart, LineChart):
        _lines(plane, chart)
    else:
        _points(plane, chart, x_axis, y_axis)
    across, up = axis_labels(chart)
    plane.set_xlabel(across)
    plane.set_ylabel(up)
    figure.text(0.03, bottom + 0.945 * height, chart.title, fontsize=13, fontweight="bold")
    for i, below in enumerate(line for part in (about, chart.note) for line in textwrap.wrap(part, LINE)):
        figure.text(0.03, bottom + (0.895 - 0.04 * i) * height, below, fontsize=8.5, color=FAINT)


def _scale(plane: Any, x_axis: Axis, y_axis: Axis) -> None:
    for axis, own, setters in ((plane.xaxis, x_axis, "x"), (plane.yaxis, y_axis, "y")):
        if own.log:
            getattr(plane, f"set_{setters}scale")("log")
        axis.set_ticks(list(own.ticks), labels=[number(tick) for tick in own.ticks])
        axis.set_ticks([], minor=True)
        getattr(plane, f"set_{setters}lim")(own.low, own.high)
    plane.grid(True, axis="y", color=GRID, linewidth=0.8)
    plane.tick_params(length=3)
    plane.set_axisbelow(True)


def _lines(plane: Any, chart: LineChart) -> None:
    for line, color in zip(chart.lines, COLORS, strict=False):
        for i, points in enumerate(segments(line, chart)):
            xs, ys = zip(*points, strict=True)
            label = line.label if i == 0 else None
            marker = "o" if len(points) <= 40 else None
            plane.plot(xs, ys, color=color, linewidth=1.8, marker=marker, markersize=3.2, label=label)
    if len(chart.lines) > 1:
        plane.legend(frameon=False, fontsize=9)


def _points(plane: Any, chart: ScatterChart, x_axis: Axis, y_axis: Axis) -> None:
    for group, color in zip(chart.groups, COLORS, strict=False):
        if len(group.front) > 1:
            plane.plot([p.x for p in group.front], [p.y for p in group.front], color=color, linewidth=1.4)
        plane.scatter([p.x for p in group.points], [p.y for p in group.points], color=color, s=26, label=group.label)
    for label in point_labels(chart, x_axis, y_axis) if chart.named else ():
        side = "right" if label.left else "left"
        plane.text(label.x, label.y, label.text, fontsize=8, color=FAINT, ha=side, va="center", transform=plane.transAxes)
    if len(chart.groups) > 1:
        plane.legend(frameon=False, fontsize=9)


def _bars(plane: Any, chart: BarChart, x_axis: Axis, y_axis: Axis) -> None:
    heights = [max(count, y_axis.low) for count in chart.counts]
    plane.stairs(heights, chart.edges, baseline=y_axis.low, fill=True, color=COLORS[0], alpha=0.85)
    for i, ((x, label), left) in enumerate(zip(chart.marks, mark_sides(chart, x_axis), strict=True)):
        plane.axvline(x, color=COLORS[1], linewidth=1.3, linestyle=(0, (4, 3)))
        side = "right" if left else "left"
        place = (x, 0.97 - 0.07 * i, f" {label} ")
        plane.text(*place, fontsize=8.5, color=COLORS[1], va="top", ha=side, transform=plane.get_xaxis_transform())
