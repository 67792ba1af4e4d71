"""The charts of a training run: loss, L0, explained variance, and what explains them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from pipeline import metric_names as names
from pipeline.plots.charts import Chart, Line, LineChart

WEIGHTED = "_weighted"
MAX_LINES = 6
# Name, title and y label of the charts that are always there.
LOSS = (names.LOSS, "Training loss", "loss, normalised activations")
L0 = (names.L0, "L0", "active features a token")
VARIANCE = (names.EXPLAINED_VARIANCE, "Explained variance", "1 - FVU")
# Drawn where they change at all.
MINOR = (
    (names.DEAD_FEATURES, "Dead features", "features"),
    (names.GRAD_NORM, "Gradient norm", "norm"),
    (names.LR, "Learning rate", "learning rate"),
    (names.TOP_K, "Features kept (k)", "features a token"),
    (names.L1_COEFFICIENT, "Sparsity coefficient", "coefficient"),
    (names.MODEL_LOSS, "Loss through the language model", "nats a prediction"),
)


def training_charts(rows: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Charts of a history: of each log step its number `step`, and the figures that metric_names.py names.

    What no row has is left out; loss, L0 and explained variance are always there.
    """
    found = [name for name in (*(r for row in rows[:1] for r in row), names.LOSS) if name.endswith(WEIGHTED)]
    terms = [(name, name.removesuffix(WEIGHTED)) for name in sorted(found)]
    losses = [(names.LOSS, "total"), *(terms if len(terms) > 1 else ())]
    charts: list[Chart] = [
        _chart(rows, *LOSS, losses, log=True),
        _chart(rows, *L0, _with_parts(rows, names.L0)),
        _chart(rows, *VARIANCE, _with_parts(rows, names.EXPLAINED_VARIANCE)),
    ]
    for name, title, unit in MINOR:
        values = {row[name] for row in rows if name in row}
        if len(values) > 1:
            charts.append(_chart(rows, name, title, unit, [(name, title.lower())]))
    return charts


def sweep_charts(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Chart]:
    """Loss, L0 and explained variance of the members of a sweep, a line each, in as many charts as the colours need.

    Args:
        histories: {member: rows}, the rows as of :func:`training_charts`.
    """
    names_of = list(histories)
    groups = [names_of[start : start + MAX_LINES] for start in range(0, len(names_of), MAX_LINES)]
    charts: list[Chart] = []
    for name, title, y_label in (LOSS, L0, VARIANCE):
        for number, group in enumerate(groups):
            lines = [_line(histories[member], name, member) for member in group]
            rows = histories[group[0]]
            chart = _of_lines(lines, name, title, y_label, _x_label(rows), log=name == names.LOSS)
            charts.append(dataclasses.replace(chart, name=f"{name}.{number}") if number else chart)
    return charts


def _with_parts(rows: Sequence[Mapping[str, float]], name: str) -> list[tuple[str, str]]:
    """The figure, and those of the layers or written hook points, as far as colours go."""
    parts = sorted(int(key.rpartition(".")[2]) for row in rows[:1] for key in row if re.fullmatch(rf"{name}\.\d+", key))
    return [(name, "all"), *((f"{name}.{i}", str(i)) for i in parts[: MAX_LINES - 1])]


def _chart(
    rows: Sequence[Mapping[str, float]],
    name: str,
    title: str,
    y_label: str,
    columns: Sequence[tuple[str, str]],
    *,
    log: bool = False,
) -> LineChart:
    lines = [_line(rows, column, label) for column, label in columns]
    return _of_lines(lines, name, title, y_label, _x_label(rows), log=log)


def _line(rows: Sequence[Mapping[str, float]], column: str, label: str) -> Line:
    steps = tuple(float(row[names.STEP]) for row in rows)
    return Line(label, steps, tuple(float(row.get(column, math.nan)) for row in rows))


def _of_lines(lines: Sequence[Line], name: str, title: str, y_label: str, x_label: str, *, log: bool) -> LineChart:
    low, high = _bounds(lines, positive=False)
    note = ""
    y_range = None
    if name == names.EXPLAINED_VARIANCE and low < 0.0 < high:
        y_range, note = (0.0, 1.0), "values below 0 are not shown"
    elif name == names.EXPLAINED_VARIANCE and low >= 0.0 and high <= 1.0:
        y_range = (low, 1.0)
    elif name == names.L0 and low >= 0.0:
        y_range = (0.0, high * 1.15 or 1.0)
    log = log and _bounds(lines, positive=True)[0] > 0.0
    return LineChart(name, title, x_label, y_label, tuple(lines), y_log=log, y_range=y_range, note=note)


def _bounds(lines: Sequence[Line], *, positive: bool) -> tuple[float, float]:
    values = [y for line in lines for y in line.y if math.isfinite(y) and (y > 0 or not positive)]
    return min(values, default=0.0), max(values, default=1.0)


def _x_label(rows: Sequence[Mapping[str, float]]) -> str:
    """The steps, with their size in tokens if the rows have it."""
    ends = [(row[names.STEP], row[names.TOKENS]) for row in rows if names.TOKENS in row]
    if len(ends) < 2 or ends[-1][0] <= ends[0][0]:
        return "step"
    size = (ends[-1][1] - ends[0][1]) / (ends[-1][0] - ends[0][0])
    return f"step (of {size:,.0f} tokens)"
