"""Charts as inline SVG, whose colours are the page's: readable in light and in dark."""

from __future__ import annotations

from html import escape

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

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 78, 24, 12, 44
PLANE_WIDTH, PLANE_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
MAX_HINTS = 240


def svg(chart: Chart) -> str:
    """The chart as an <svg> element; a <title> in each bin or step shows its numbers on hovering."""
    x_axis, y_axis = axes(chart)
    across, up = axis_labels(chart)
    middle = TOP + PLANE_HEIGHT / 2
    clip = f'x="{LEFT - 3}" y="{TOP - 3}" width="{PLANE_WIDTH + 6}" height="{PLANE_HEIGHT + 3}"'
    plane = escape(f"plane-{chart.name}")
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">',
        f'<clipPath id="{plane}"><rect {clip}/></clipPath>',
        *_grid(x_axis, y_axis),
        f'<g clip-path="url(#{plane})">',
        *_content(chart, x_axis, y_axis),
        "</g>",
        f'<text class="label" x="{LEFT + PLANE_WIDTH / 2:.0f}" y="{HEIGHT - 6}">{escape(across)}</text>',
        f'<text class="label" transform="translate(13 {middle:.0f}) rotate(-90)">{escape(up)}</text>',
        "</svg>",
    ]
    return "\n".join(parts)


def _content(chart: Chart, x_axis: Axis, y_axis: Axis) -> list[str]:
    if isinstance(chart, BarChart):
        return _bars(chart, x_axis, y_axis)
    return _lines(chart, x_axis, y_axis) if isinstance(chart, LineChart) else _points(chart, x_axis, y_axis)


def _points(chart: ScatterChart, x_axis: Axis, y_axis: Axis) -> list[str]:
    parts = []
    for i, group in enumerate(chart.groups):
        if len(group.front) > 1:
            path = "L".join(f"{_x(x_axis, p.x):.1f} {_y(y_axis, p.y):.1f}" for p in group.front)
            parts.append(f'<path class="line c{i}" d="M{path}"/>')
        for point in group.points:
            x, y = _x(x_axis, point.x), _y(y_axis, point.y)
            text = escape(f"{point.label}: {number(point.x)}, {number(point.y)}")
            parts.append(f'<circle class="dot c{i}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{text}</title></circle>')
    for label in point_labels(chart, x_axis, y_axis) if chart.named else ():
        x, y = LEFT + PLANE_WIDTH * label.x, TOP + PLANE_HEIGHT * (1 - label.y)
        anchor = "end" if label.left else "start"
        place = f'text-anchor="{anchor}" x="{x:.1f}" y="{y + 4:.1f}"'
        parts.append(f'<text class="tick" {place}>{escape(label.text)}</text>')
    return parts


def _x(axis: Axis, value: float) -> float:
    return LEFT + PLANE_WIDTH * axis.share(value)


def _y(axis: Axis, value: float) -> float:
    return TOP + PLANE_HEIGHT * (1 - axis.share(value))


def _grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    bottom, right = TOP + PLANE_HEIGHT, LEFT + PLANE_WIDTH
    parts = []
    for tick in y_axis.ticks:
        y = _y(y_axis, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{y + 3.5:.1f}">{number(tick)}</text>')
    for tick in x_axis.ticks:
        x = _x(x_axis, tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{bottom + 16}">{number(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    return parts


def _lines(chart: LineChart, x_axis: Axis, y_axis: Axis) -> list[str]:
    parts = []
    for i, line in enumerate(chart.lines):
        for points in segments(line, chart):
            places = [(_x(x_axis, x), _y(y_axis, y)) for x, y in points]
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            parts.append(f'<path class="line c{i}" d="M{path}"/>')
            if len(places) <= 40:
                parts.extend(f'<circle class="dot c{i}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in places)
    return parts + _hints(chart, x_axis)


def _hints(chart: LineChart, x_axis: Axis) -> list[str]:
    """Upright strips, one around each step (or group of steps), that say its values."""
    if not chart.lines:
        return []
    xs = chart.lines[0].x
    size = max(1, -(-len(xs) // MAX_HINTS))
    chosen = list(range(0, len(xs), size))
    places = [_x(x_axis, xs[i]) for i in chosen]
    parts = []
    for n, i in enumerate(chosen):
        left = (places[n - 1] + places[n]) / 2 if n else LEFT
        right = (places[n] + places[n + 1]) / 2 if n + 1 < len(chosen) else LEFT + PLANE_WIDTH
        values = ", ".join(f"{line.label} {number(line.y[i])}" for line in chart.lines if i < len(line.y))
        text = escape(f"{chart.x_label.split(' (')[0]} {xs[i]:,.0f}: {values}")
        strip = f'x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{PLANE_HEIGHT}"'
        parts.append(f'<rect class="hint" {strip}><title>{text}</title></rect>')
    return parts


def _range(chart: BarChart, low: float, high: float) -> str:
    if not chart.whole:
        return f"{number(low)} to {number(high)}"
    return f"{low:,.0f}" if high - low <= 1 else f"{low:,.0f} to {high - 1:,.0f}"


def _bars(chart: BarChart, x_axis: Axis, y_axis: Axis) -> list[str]:
    parts = []
    bottom = TOP + PLANE_HEIGHT
    for low, high, count in zip(chart.edges[:-1], chart.edges[1:], chart.counts, strict=True):
        start, end, y = _x(x_axis, low), _x(x_axis, high), _y(y_axis, max(count, y_axis.low))
        text = escape(f"{_range(chart, low, high)}: {count:,.0f} {chart.y_label}")
        bar = f'x="{start:.1f}" width="{max(end - start - 0.6, 0.4):.1f}"'
        parts.append(f'<rect class="bar" {bar} y="{y:.1f}" height="{bottom - y:.1f}"/>')
        parts.append(f'<rect class="hint" {bar} y="{TOP}" height="{PLANE_HEIGHT}"><title>{text}</title></rect>')
    for i, ((value, label), left) in enumerate(zip(chart.marks, mark_sides(chart, x_axis), strict=True)):
        x = _x(x_axis, value)
        y = TOP + 12 + 15 * i
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        anchor, shift = ("end", -5) if left else ("start", 5)
        parts.append(f'<text class="marked" text-anchor="{anchor}" x="{x + shift:.1f}" y="{y}">{escape(label)}</text>')
    return parts
