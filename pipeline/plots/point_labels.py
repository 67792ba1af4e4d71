"""Where the names of a scatter chart's points stand."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from pipeline.plots.charts import CHARACTER, MAX_NAMES, Axis, ScatterChart

LATE = 0.75  # a point beyond this share of x has its label on its left
ROW = 0.055  # share of y that a label takes
BELOW, OTHER_SIDE, OVER = 0.25, 0.6, 2.5  # rows that a place is farther by: below, on the other side, over a dot or line
ASIDE = 0.015  # share of x between a point and its label


class Label(NamedTuple):
    """Where the name of a point stands.

    Attributes:
        text: the name.
        x, y: shares of the plane: its end that is next to the point, and its middle.
        left: whether it is on the left of the point.
    """

    text: str
    x: float
    y: float
    left: bool


def point_labels(chart: ScatterChart, x_axis: Axis, y_axis: Axis) -> list[Label]:
    """The names of the points, each near its point: none covers another, and a dot or a line only where all else is farther."""
    groups = [[(x_axis.share(p.x), y_axis.share(p.y), p.label) for p in group.points] for group in chart.groups]
    lines = [[(x_axis.share(p.x), y_axis.share(p.y)) for p in group.front] for group in chart.groups]
    pieces = [piece for line in lines for piece in itertools.pairwise(line)]
    points = [point for group in groups for point in group]
    placed: list[_Box] = []
    labels = []
    for x, y, text in sorted(points, key=lambda point: (-point[1], point[0])):
        best: tuple[float, _Box, bool] | None = None
        for left, half in itertools.product((x > LATE, x <= LATE), range(-2 * MAX_NAMES, 2 * MAX_NAMES + 1)):
            step = half / 2
            row = y + ROW * step
            start = x - ASIDE - CHARACTER * len(text) if left else x + ASIDE
            box = _Box(start, start + CHARACTER * len(text), row - ROW / 2, row + ROW / 2)
            if box.low < 0 or box.high > 1 or box.start < 0 or box.end > 1 or any(box.meets(other) for other in placed):
                continue
            far = abs(step) + (step < 0) * BELOW + (left != (x > LATE)) * OTHER_SIDE
            far += OVER * (sum(box.holds(px, py) for px, py, _ in points) + sum(box.crossed(*piece) for piece in pieces))
            if best is None or far < best[0]:
                best = far, box, left
        if best is None:  # more names than rows
            best = 0.0, _Box(x + ASIDE, x + ASIDE + CHARACTER * len(text), y - ROW / 2, y + ROW / 2), False
        _, box, left = best
        placed.append(box)
        labels.append(Label(text, box.end if left else box.start, (box.low + box.high) / 2, left))
    return labels


class _Box(NamedTuple):
    """What a name covers, in shares of the plane."""

    start: float
    end: float
    low: float
    high: float

    def meets(self, other: _Box) -> bool:
        return self.start < other.end and other.start < self.end and self.low < other.high and other.low < self.high

    def holds(self, x: float, y: float) -> bool:
        return self.start < x < self.end and self.low < y < self.high

    def crossed(self, first: tuple[float, float], second: tuple[float, float]) -> bool:
        """Whether the straight line between two points has a part in the box."""
        (x, y), (across, up) = first, (second[0] - first[0], second[1] - first[1])
        begins, ends = 0.0, 1.0
        for at, step, low, high in ((x, across, self.start, self.end), (y, up, self.low, self.high)):
            if step == 0.0:
                if not low < at < high:
                    return False
                continue
            near, far = sorted(((low - at) / step, (high - at) / step))
            begins, ends = max(begins, near), min(ends, far)
        return begins < ends
