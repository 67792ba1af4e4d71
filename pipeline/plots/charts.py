"""What a chart shows, apart from how it is drawn (png.py, svg.py)."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_POINTS = 1000
MAX_NAMES = 16
BESIDE = 1.02  # of the last x of a scatter chart: no point, often at a round number, is cut by the edge
LEAST_ROOM, ROOM = 1.1, 0.06  # of a logarithmic scatter chart on either side of its values: times, and share of decades
RESOLUTION = 1e-11  # of the largest value: what lies closer together is drawn as one value
CHARACTER = 0.012  # share of x that a character of a label takes, about
LOWEST_BAR, LOG_ROOM = 0.5, 3.0  # where a logarithmic axis of bars begins, and its end as a multiple of the highest


@dataclass(frozen=True)
class Line:
    """One line of a line chart.

    Attributes:
        label: named in the legend where there are several.
        x, y: its points; y may have gaps (nan).
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class LineChart:
    """Lines over a common x.

    Attributes:
        name: unique on a page. Charts whose names are equal up to the first dot share a PNG file of that name.
        title, x_label, y_label: labels have the unit.
        lines: at most six.
        y_log: logarithmic y; values that are not positive are gaps.
        y_range: what y shows; None: all of it.
        note: a sentence below the title.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    y_log: bool = False
    y_range: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class BarChart:
    """A histogram.

    Attributes:
        name, title, x_label, y_label, note: as of a line chart.
        edges: m + 1 ascending edges of bins.
        counts: m counts.
        x_log: logarithmic x; edges are positive.
        y_log: logarithmic y, on which a bin of one is seen beside one of thousands.
        whole: edges are whole numbers, and a bin holds those from its low edge to before its high one.
        marks: (x, label) of upright lines.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    edges: tuple[float, ...]
    counts: tuple[float, ...]
    x_log: bool = False
    y_log: bool = False
    whole: bool = False
    marks: tuple[tuple[float, str], ...] = field(default=())
    note: str = ""


class Point(NamedTuple):
    """One point of a scatter chart, with its name."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Group:
    """Points of one colour.

    Attributes:
        label: named in the legend where there are several.
        points: in any order.
        front: joined by a line, in order; may be empty.
    """

    label: str
    points: tuple[Point, ...]
    front: tuple[Point, ...] = ()


@dataclass(frozen=True)
class ScatterChart:
    """Named points.

    Attributes:
        name, title, x_label, y_label, note: as of a line chart.
        groups: at most six.
        x_log, y_log: logarithmic; all values there are positive.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    groups: tuple[Group, ...]
    note: str = ""
    x_log: bool = False
    y_log: bool = False

    @property
    def named(self) -> bool:
        """Whether there are few enough points to write their names beside them."""
        return sum(len(group.points) for group in self.groups) <= MAX_NAMES


Chart = LineChart | BarChart | ScatterChart


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high` with the places of its ticks."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Where the value lies, 0 at `low`, 1 at `high`."""
        if self.log:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)


def linear_axis(low: float, high: float, n: int = 6, *, tight: bool = False) -> Axis:
    """An axis with about `n` round ticks (1, 2 or 5 times a power of ten apart).

    Args:
        low, high: the values to show.
        tight: the axis ends at the values; else at ticks.
    """
    largest = max(abs(low), abs(high))
    if not (high - low) / n > max(RESOLUTION * largest, sys.float_info.min):
        room = largest * 0.1 if largest > sys.float_info.min / RESOLUTION else 1.0
        low, high = low - room, high + room
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if not tight:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        low, high = first * step, last * step
    return Axis(low, high, False, tuple(_round(i * step, step) for i in range(first, last + 1)))


def log_axis(low: float, high: float) -> Axis:
    """A logarithmic axis from `low` to `high`, with ticks at 1, 2 and 5 times powers of ten where it has up to two decades,
    at fewer beyond, at more below one, and at equal distances where these are few.
    """
    if not low < high:
        low, high = low / 1.5, high * 1.5
    if high < 4 * low:
        return Axis(low, high, True, linear_axis(low, high, 8, tight=True).ticks)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = tuple(m * 10.0**e for e in exponents for m in factors if low <= m * 10.0**e <= high)
        if len(ticks) <= 8:
            break
    return Axis(low, high, True, ticks)


def _round(value: float, step: float) -> float:
    digits = max(0, 1 - math.floor(math.log10(step)))
    return round(value, digits) + 0.0


def axes(chart: Chart) -> tuple[Axis, Axis]:
    """x and y of a chart."""
    if isinstance(chart, BarChart):
        x = (
            log_axis(chart.edges[0], chart.edges[-1])
            if chart.x_log
            else linear_axis(chart.edges[0], chart.edges[-1], tight=True)
        )
        most = max(chart.counts, default=0.0) or 1.0
        return x, log_axis(LOWEST_BAR, LOG_ROOM * most) if chart.y_log else linear_axis(0.0, most, 5)
    if isinstance(chart, ScatterChart):
        points = [point for group in chart.groups for point in group.points]
        across, up = [point.x for point in points], [point.y for point in points]
        return (
            _around(across) if chart.x_log else linear_axis(min([0.0, *across]), BESIDE * max(across, default=1.0)),
            _around(up) if chart.y_log else linear_axis(min([0.0, *up]), max(up, default=1.0), 5),
        )
    xs = [x for line in chart.lines for x in line.x]
    x = linear_axis(min(xs, default=0.0), max(xs, default=1.0), tight=True)
    ys = [y for line in chart.lines for y in line.y if math.isfinite(y) and (y > 0 or not chart.y_log)]
    low, high = chart.y_range or (min(ys, default=0.0 if not chart.y_log else 0.1), max(ys, default=1.0))
    if chart.y_log:
        return x, log_axis(low / 1.1, high * 1.1)
    return x, linear_axis(low, high, 5)


def _around(values: Sequence[float]) -> Axis:
    """A logarithmic axis with room on both sides of the values."""
    low, high = min(values), max(values)
    room = max(LEAST_ROOM, (high / low) ** ROOM)
    return log_axis(low / room, high * room)


def axis_labels(chart: Chart) -> tuple[str, str]:
    """Labels of x and y, which say where a scale is logarithmic."""
    x, y = (", log scale" if axis.log else "" for axis in axes(chart))
    return chart.x_label + x, chart.y_label + y


def mark_sides(chart: BarChart, x_axis: Axis) -> list[bool]:
    """Of each mark whether its label is on its left: where there is no room on the right, before the edge or the next mark's
    line or label. So no label stands between two lines that it could be of.
    """
    marks = [(x_axis.share(x), CHARACTER * len(label)) for x, label in chart.marks]
    left = [share + width > 1.0 for share, width in marks]
    for i, (share, width) in enumerate(marks):
        starts = [at - other * on_left for (at, other), on_left in zip(marks, left, strict=True) if at > share]
        left[i] = left[i] or (share + width > min(starts, default=1.0) and share > width)
    return left


def legend(chart: Chart) -> tuple[str, ...]:
    """Names of the colours, where there are several."""
    if isinstance(chart, BarChart):
        return ()
    named = chart.lines if isinstance(chart, LineChart) else chart.groups
    return tuple(part.label for part in named) if len(named) > 1 else ()


def segments(line: Line, chart: LineChart) -> list[list[tuple[float, float]]]:
    """The line's points, thinned to means over groups where there are many, cut where y is a gap."""
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in thinned(line.x, line.y):
        if math.isfinite(y) and (y > 0 or not chart.y_log):
            found[-1].append((x, y))
        elif found[-1]:
            found.append([])
    return [points for points in found if points]


def thinned(x: Sequence[float], y: Sequence[float], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: means over equal groups of neighbours."""
    size = math.ceil(len(x) / most) or 1
    groups = [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
    return [(math.fsum(a) / len(a), math.fsum(b) / len(b)) for a, b in groups]


def number(value: float) -> str:
    """A number for a tick or a tooltip: 4 digits, thousands as k, M, G."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    size = abs(value)
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= bound * (10 if unit == "k" else 1):
            return f"{value / bound:.4g}{unit}"
    if size < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"
