"""The first page of a sweep's dashboard: the members beside each other, each with a link to its own pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from pipeline.dashboard.folder import SINGLE_PAGE, style, theme_script
from pipeline.evaluation.compared import interval_of
from pipeline.evaluation.members import member_experiments
from pipeline.metric_names import ordinary
from pipeline.plots.charts import number
from pipeline.plots.experiment import Experiment
from pipeline.plots.page import card
from pipeline.plots.pareto import front, pareto_charts
from pipeline.plots.training_report import PAGE

if TYPE_CHECKING:
    from pipeline.params.schema import Params

UP = f"../{PAGE}"  # from a member's pages to this one
# Two charts side by side from 1,200 px on; text of the table on its left.
_STYLE = """
.pareto { grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); } .pareto svg { min-width: 520px; }
.members td:first-child { min-width: 230px; } .members .num { white-space: nowrap; }
.members .text { text-align: left; min-width: 170px; max-width: 330px; }
"""
_HEAD = ("member", "of its own", "L0", "FVU", "PCA", "delta cross entropy", "PCA", "dead")


def members_page(params: Params, metrics: Mapping[str, Mapping[str, Any]], shown: Mapping[str, str], *, single: bool) -> str:
    """The HTML page, which lies beside the members' folders; it asks the network for nothing; its script is for colours.

    Args:
        params: of the run.
        metrics: {member: its evaluation}.
        shown: {member: what it is, in a line}.
        single: whether each has a page that is one file.
    """
    experiments = member_experiments(params, metrics)
    title = f"{params.dictionary.name}: {len(experiments)} members"
    first = experiments[0]
    tokens = f"{metrics[first.name]['evaluated_tokens']:,.0f}"
    rows = "\n".join(_row(e, metrics[e.name], shown[e.name], experiments, single) for e in experiments)
    head = "".join(f"<th{' class=text' * (i == 1)}>{escape(name)}</th>" for i, name in enumerate(_HEAD))
    cards = "\n".join(card(chart) for chart in pareto_charts(experiments, "member"))
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(title)}</title>",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<style>{style()}{_STYLE}</style></head><body>",
            '<header class="top"><span class="brand">Scopeline</span>',
            f'<nav><a class="on" href="{PAGE}">Members</a></nav><button id="theme" type="button"></button></header>',
            f'<div id="view" class="view"><h1>{escape(title)}</h1>',
            f"<p>Metrics are of {tokens} tokens of held-out text. Bold: no other member at the same hook points has a lower L0",
            "and a lower loss. Which member to take: <code>python -m stages.report</code> says the knee, and so does",
            "metrics/plots/evaluation/index.html.</p>",
            '<section class="card"><div class="wide"><table class="compare members">',
            f"<thead><tr>{head}</tr></thead><tbody>",
            rows,
            f'</tbody></table></div></section><div class="cards pareto">{cards}</div></div>',
            f"<script>{theme_script()}</script></body></html>\n",
        ]
    )


def _row(e: Experiment, metrics: Mapping[str, Any], shown: str, experiments: Sequence[Experiment], single: bool) -> str:
    same = [other for other in experiments if other.site == e.site]
    place = escape(e.name)
    pages = {f"{PAGE}#/features": "features", SINGLE_PAGE: "one file"} if single else {f"{PAGE}#/features": "features"}
    links = " \N{MIDDLE DOT} ".join(f'<a href="{place}/{page}">{text}</a>' for page, text in pages.items())
    fvu, delta = ordinary(metrics, "fvu"), "delta_ce"
    cells = [
        f'<td><a href="{place}/{PAGE}"><b>{place}</b></a><small>{escape(shown)}</small><small>{links}</small></td>',
        f"<td class=text>{escape(e.differs) or '<span class=faint>as the run</span>'}</td>",
        f'<td class="num">{number(e.l0)}</td>',
        _loss(metrics, fvu, e in front(same, lambda one: one.fvu)),
        f'<td class="num">{_shown(e.pca_fvu)}</td>',
        _loss(metrics, delta, e in front(same, lambda one: one.delta_ce)),
        f'<td class="num">{_shown(e.pca_delta_ce)}</td>',
        f'<td class="num">{e.dead:.2%}</td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _loss(metrics: Mapping[str, Any], key: str, best: bool) -> str:
    """A figure with its interval; bold where it is on the front."""
    ends = interval_of(metrics, key)
    small = f"<small>95 %: {number(ends[0])} \N{EN DASH} {number(ends[1])}</small>" if ends else ""
    return f'<td class="num{" own" if best else ""}">{number(metrics[key])}{small}</td>'


def _shown(value: float | None) -> str:
    return "" if value is None else number(value)
