"""Experiments beside each other, those of each site by themselves: as lines of text and as tables of a page."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.extent import Extent
from pipeline.plots.charts import number
from pipeline.plots.experiment import Experiment
from pipeline.plots.knee import RULES, advice
from pipeline.plots.page import Row, Table
from pipeline.plots.pareto import front

HEAD = (
    "experiment",
    "dictionary",
    "seed",
    "lr",
    "trained",
    "L0",
    "FVU",
    "95 %",
    "PCA",
    "delta CE",
    "95 %",
    "PCA",
    "rank",
    "dead",
)
NAMES = 2  # first columns, which are words
LEGEND = {
    "seed": "of the run",
    "lr": "learning rate",
    "trained": "tokens trained on",
    "L0": "active features a token, mean",
    "FVU": "fraction of variance unexplained: 0 is perfect, 1 no better than the mean",
    "delta CE": "cross entropy that the reconstruction adds to the model's own, nats a token",
    "95 %": "interval of the loss before it",
    "PCA": "the same loss of PCA with `rank` directions",
    "rank": "directions of PCA: as many as the L0, of several layers as that of each",
    "dead": "share of the features that are active on no evaluated token",
    "*": "no other row of the group has as low an L0 and as low a loss, and one of them lower",
}


def by_site(experiments: Sequence[Experiment]) -> dict[str, list[Experiment]]:
    """{site: its experiments by growing L0}."""
    sites = dict.fromkeys(e.site for e in experiments)
    return {site: sorted((e for e in experiments if e.site == site), key=lambda e: e.l0) for site in sites}


def heading(site: str, own: Sequence[Experiment]) -> str:
    """The site, with the tokens of its evaluation, where it does not say them, and their documents, where they were counted."""
    evaluated, extent = own[0].evaluated, extent_of(own)
    whole = site if not evaluated or evaluated in site else f"{site}, {evaluated}"
    return whole if extent is None else f"{whole} of {extent.words()}"


def extent_of(own: Sequence[Experiment]) -> Extent | None:
    """The documents that the intervals of a site rest on: the fewest that an experiment of it has."""
    return min((e.extent for e in own if e.extent is not None), default=None)


def warnings(own: Sequence[Experiment]) -> list[str]:
    """What few documents do to the intervals of a site; nothing where they are many, or not known."""
    extent = extent_of(own)
    return [warning] if extent is not None and (warning := extent.warning()) else []


def remarks(own: Sequence[Experiment]) -> list[str]:
    """What stands with the rows of a site: what few documents do to its intervals, and its knee."""
    return [*warnings(own), *advice(own)]


def cells(own: Sequence[Experiment]) -> list[tuple[str, ...]]:
    """A row for each experiment of a site, under HEAD, and last what tells it from the others; an asterisk marks the front of
    FVU and that of delta cross entropy."""
    fronts = [front(own, lambda e: e.fvu), front(own, lambda e: e.delta_ce)]
    rows: list[tuple[str, ...]] = []
    for e in own:
        marks = ["*" if e in chosen else " " for chosen in fronts]
        fvu, delta_ce = f"{e.fvu:.4f}{marks[0]}", f"{e.delta_ce:.4f}{marks[1]}"
        pca = ["-" if value is None else f"{value:.4f}" for value in (e.pca_fvu, e.pca_delta_ce)]
        ends = ["-" if each is None else f"{each[0]:.4f} to {each[1]:.4f}" for each in (e.fvu_interval, e.delta_ce_interval)]
        trained, rank = "-" if e.trained is None else number(e.trained), "-" if e.pca_rank is None else f"{e.pca_rank:.0f}"
        said = (e.name, e.about, e.seed or "-", e.lr or "-", trained, f"{e.l0:.1f}")
        rows.append((*said, fvu, ends[0], pca[0], delta_ce, ends[1], pca[1], rank, f"{e.dead:.2%}", e.differs))
    return rows


def table(experiments: Sequence[Experiment]) -> list[str]:
    """Lines of text, by site and L0; the last column, where any has it, says what each has of its own."""
    sites = [(heading(site, own), cells(own)) for site, own in by_site(experiments).items()]
    said = {heading(site, own): remarks(own) for site, own in by_site(experiments).items()}
    head = (*HEAD, "differs in" if any(e.differs for e in experiments) else "")
    widths = [max(len(row[i]) for row in [head, *(row for _, rows in sites for row in rows)]) for i in range(len(HEAD))]

    def line(row: tuple[str, ...]) -> str:
        words = [cell.ljust(width) for cell, width in zip(row[:NAMES], widths[:NAMES], strict=True)]
        figures = [cell.rjust(width) for cell, width in zip(row[NAMES:-1], widths[NAMES:], strict=True)]
        return "  ".join([*words, *figures, row[-1]]).rstrip()

    found = []
    for site, rows in sites:
        found += [site, f"  {line(head)}", *(f"  {line(row)}" for row in rows), *(f"  {each}" for each in said[site]), ""]
    meanings = legend(experiments)
    width = max(map(len, meanings))
    return [*found, *(f"{name.ljust(width)}  {meaning}" for name, meaning in meanings.items())]


def legend(experiments: Sequence[Experiment]) -> dict[str, str]:
    """{column or mark: what it means}; of the knee where lines on it are there."""
    return LEGEND | (RULES if any(advice(own) for own in by_site(experiments).values()) else {})


def tables(experiments: Sequence[Experiment]) -> list[Table]:
    """The same as a table of a page for each site, and last what the columns mean."""
    sites = by_site(experiments)
    found = [
        Table(
            heading(site, own),
            HEAD[1:],
            tuple(Row(row[0], row[-1], row[1:-1]) for row in cells(own)),
            points=tuple(remarks(own)),
        )
        for site, own in sites.items()
    ]
    meanings = legend(experiments)
    return [*found, Table("Columns", points=tuple(f"{name}: {meaning}" for name, meaning in meanings.items()))]


def markdown(experiments: Sequence[Experiment], what: str = "run") -> list[str]:
    """A table for each site, as Markdown, with what follows from it."""
    lines: list[str] = []
    for site, own in by_site(experiments).items():
        columns = (*HEAD, "differs in")
        rows = [[cell.strip().replace("|", "\\|").replace("*", "\\*") for cell in row] for row in cells(own)]
        lines += [
            f"**{heading(site, own)}** (\\*: no other {what} has as low an L0 and as low a loss, and one of them lower)",
            "",
        ]
        lines += [*(f"- {line}" for line in remarks(own)), ""] if remarks(own) else []
        lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *(f"| {' | '.join(row)} |" for row in rows), ""]
    return lines
