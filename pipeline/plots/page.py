"""One HTML page of charts and figures: no script, no font and nothing else from elsewhere, so that it opens offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from pipeline.plots.charts import Chart, legend, number
from pipeline.plots.svg import svg

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --card: #ffffff; --edge: #dfe3e8; --text: #1f2430; --faint: #5b6270;
  --grid: #e8ebef; --axis: #9aa1ad; --c0: #2563a8; --c1: #d9622b; --c2: #2a8c5a; --c3: #8a55b5; --c4: #b83253; --c5: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --card: #1b1f26; --edge: #2e343e; --text: #e6e9ee;
  --faint: #a2abb8; --grid: #2a303a; --axis: #5c6675; --c0: #6aa9f0; --c1: #f0935f; --c2: #5fc492; --c3: #b98be0;
  --c4: #ee7a97; --c5: #a2abb8; } }
body { margin: 0 auto; padding: 28px 20px 40px; max-width: 1360px; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 22px; } h2 { margin: 0 0 2px; font-size: 16px; }
p { margin: 4px 0 18px; color: var(--faint); } .card p { margin: 0 0 6px; font-size: 13px; min-height: 1.4em; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 18px; }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: 14px 16px 8px; }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, "DejaVu Sans", sans-serif; }
.grid { stroke: var(--grid); } .axis { stroke: var(--axis); }
.tick { fill: var(--faint); } .label { fill: var(--text); font-size: 12px; text-anchor: middle; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .bar { fill: var(--c0); }
.mark { stroke: var(--c1); stroke-dasharray: 4 3; } .marked { fill: var(--c1); }
.hint { fill: transparent; } .hint:hover { fill: var(--text); fill-opacity: 0.08; }
.key { display: inline-block; margin-right: 14px; } .key i { display: inline-block; width: 16px; height: 3px;
  margin-right: 5px; vertical-align: middle; }
.figures { grid-column: 1 / -1; } dl { margin: 6px 0; columns: 3 260px; column-gap: 40px; }
dl div { display: flex; justify-content: space-between; padding: 3px 0; border-top: 1px solid var(--grid);
  break-inside: avoid; }
dt small { display: block; color: var(--faint); font-size: 12px; padding-right: 18px; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.card ul { margin: 0 0 8px; padding-left: 20px; color: var(--faint); font-size: 13px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; margin: 6px 0; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 0 3px 24px; text-align: right; vertical-align: top; border-top: 1px solid var(--grid); font-weight: 400; }
thead th { border-top: 0; color: var(--faint); font-size: 13px; } tr > :first-child { padding-left: 0; text-align: left; }
th small { display: block; color: var(--faint); font-size: 12px; }
"""
STYLE = _STYLE + "".join(f".line.c{i} {{ stroke: var(--c{i}); }} .dot.c{i} {{ fill: var(--c{i}); }}\n" for i in range(6))


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        name, about: what it is; about is shown small.
        cells: numbers or text; None: empty.
        link: of the name, a page beside this one; "": none.
    """

    name: str
    about: str
    cells: tuple[float | str | None, ...]
    link: str = ""


@dataclass(frozen=True)
class Table:
    """Figures in rows and columns.

    Attributes:
        title: its heading.
        columns: of the cells.
        rows: in order; of none only the heading and what is below it are shown.
        note: below the heading.
        points: a list below that.
    """

    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    note: str = ""
    points: tuple[str, ...] = ()


def page(
    title: str,
    about: str,
    charts: Sequence[Chart],
    figures: Mapping[str, float | str] | None = None,
    *,
    tables: Sequence[Table] = (),
    more: Sequence[Table] = (),
) -> str:
    """The whole page.

    Args:
        title: its heading.
        about: what it is of, below the heading.
        charts: in order.
        figures: {name with unit: value}, shown before the charts; None: none.
        tables, more: before the charts and after them.
    """
    cards = [_figures(figures)] if figures else []
    cards += [*map(_table, tables), *map(card, charts), *map(_table, more)]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(f"{title}: {about}" if about else title)}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}</style></head>",
            f"<body><h1>{escape(title)}</h1><p>{escape(about)}</p><main>",
            *cards,
            "</main></body></html>\n",
        ]
    )


def card(chart: Chart) -> str:
    """A chart with its title and legend, as HTML that STYLE styles."""
    return f'<section class="card"><h2>{escape(chart.title)}</h2><p>{_legend(chart)}</p>\n{svg(chart)}</section>'


def _legend(chart: Chart) -> str:
    keys = [
        f'<span class="key"><i style="background: var(--c{i})"></i>{escape(name)}</span>'
        for i, name in enumerate(legend(chart))
    ]
    return "".join(keys) + escape(chart.note)


def _figures(figures: Mapping[str, float | str]) -> str:
    rows = [f"<div><dt>{escape(name)}</dt><dd>{_cell(value)}</dd></div>" for name, value in figures.items()]
    return f'<section class="card figures"><h2>Figures</h2><dl>{"".join(rows)}</dl></section>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in ("", *table.columns))
    lines = []
    for row in table.rows:
        about = f"<small>{escape(row.about)}</small>" if row.about else ""
        cells = "".join(f"<td>{_cell(cell)}</td>" for cell in row.cells)
        name = f'<a style="color: var(--c0)" href="{escape(row.link)}">{escape(row.name)}</a>' if row.link else escape(row.name)
        lines.append(f"<tr><th>{name}{about}</th>{cells}</tr>")
    body = "\n".join(lines)
    shown = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    if table.points:
        note += f"<ul>{''.join(f'<li>{escape(point)}</li>' for point in table.points)}</ul>"
    figures = f"<table>{shown}<tbody>\n{body}\n</tbody></table>" if table.rows else ""
    kind = "card figures wide" if len(table.columns) > 1 or not table.rows else "card wide"
    return f'<section class="{kind}"><h2>{escape(table.title)}</h2>{note}{figures}</section>'


def _cell(value: float | str | None) -> str:
    return "" if value is None else escape(value if isinstance(value, str) else number(value))
