"""Experiments and members of sweeps compared: L0 against what the reconstruction loses, with the front of those that no other
one beats in both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.metric_names import ordinary
from pipeline.plots.charts import Group, Point, ScatterChart

MOST_SITES = 6
NOTHING = (None, "None", "-", "")  # what DVC gives for null, and for what a row does not have
FIGURES_OF_A_ROW = ("l0_mean", "fvu", "delta_ce", "dead_fraction")
_TEXT = ("dataset_name_or_path", "config_name", "split", "messages_field")
PCA_NOTE = "PCA stands at its rank, its directions at each hook point written"
FIGURES = {
    "fvu": ("FVU", "fraction of variance unexplained, held out"),
    "delta_ce": ("Delta cross entropy", "cross entropy added (nats a token), held out"),
}


class Experiment(NamedTuple):
    """What one experiment reached.

    Attributes:
        name: of the experiment, or a revision; of a member of a sweep `experiment/member`.
        site: model and hook points written; only experiments of one site are comparable.
        about: kind, activation function and width.
        l0, fvu, delta_ce, dead: metrics of its evaluation, massive tokens left out where it has told them (not in evaluations
            of before); l0 of several layers is the sum of theirs.
        pca_fvu, pca_delta_ce, pca_rank: of the baseline; its rank is of each written hook point. None: not measured.
        revision, data: of the model, and the text; they are part of the site where experiments differ in them.
        differs: what a member of a sweep has of its own (:func:`differs`).
    """

    name: str
    site: str
    about: str
    l0: float
    fvu: float
    delta_ce: float
    dead: float
    pca_fvu: float | None = None
    pca_delta_ce: float | None = None
    pca_rank: float | None = None
    revision: str = ""
    data: str = ""
    differs: str = ""


def differs(keys: Mapping[str, Any]) -> str:
    """{dotted key: value} in words, keys of the dictionary without their section: `top_k 16, trainer.lr 0.0002`."""
    return ", ".join(f"{key.removeprefix('dictionary.')} {_shown(value)}" for key, value in keys.items())


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return _hook_points([str(each) for each in value])
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def member_rows(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row of `dvc.api.exp_show` for each member of its sweep, as if it had been an experiment by itself; the row as it is
    without a sweep.

    A member's metrics are those that begin with its name, its parameters the row's with those of `sweep.<member>` over them.
    DVC writes None for null and for what the row does not have: that is laid over nothing.
    """
    last = f".{FIGURES_OF_A_ROW[0]}"
    names = [key.removesuffix(last) for key, value in row.items() if key.endswith(last) and _number(value) is not None]
    if not names:
        return [dict(row)]
    shared = {key: value for key, value in row.items() if not key.startswith(("sweep.", *(f"{name}." for name in names)))}
    found = []
    for name in names:
        metrics, keys = (_under(row, f"{place}.") for place in (name, f"sweep.{name}"))
        experiment = {"Experiment": f"{row.get('Experiment') or row.get('rev')}/{name}"}
        found.append({**shared, **keys, **metrics, **experiment, "differs": differs(keys)})
    return found


def _under(row: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix) and value not in NOTHING}


def read_experiment(row: Mapping[str, Any]) -> Experiment | None:
    """An experiment of a row of `dvc.api.exp_show`; None where it was not evaluated."""
    found = [row.get(ordinary(row, name)) for name in FIGURES_OF_A_ROW]
    figures = [float(value) for value in found if isinstance(value, int | float)]
    if len(figures) < len(found):
        return None

    def field(name: str) -> Any:
        value = row.get(name)
        return None if value in NOTHING else value

    written = field("dictionary.hook_points_out") or field("dictionary.hook_point_out")
    written = written or field("dictionary.hook_points_in") or field("dictionary.hook_point_in") or "?"
    act_fn, top_k = field("dictionary.act_fn") or "", field("dictionary.top_k")
    act = f"{act_fn} {top_k:.0f}" if "topk" in str(act_fn) and isinstance(top_k, int | float) else str(act_fn)
    return Experiment(
        name=str(row.get("Experiment") or row.get("rev")),
        site=f"{field('model.model_name') or 'model'}, {_hook_points(written)}",
        about=f"{field('dictionary.kind') or 'dictionary'} {act}".strip(),
        l0=figures[0],
        fvu=figures[1],
        delta_ce=figures[2],
        dead=figures[3],
        pca_fvu=_number(row.get(ordinary(row, "pca_fvu"))),
        pca_delta_ce=_number(row.get("pca_delta_ce")),
        pca_rank=_number(row.get("pca_rank")),
        revision=str(field("model.revision") or "default revision"),
        data=_data(_sources(row) or [field(f"dataset.{name}") for name in _TEXT]),
        differs=str(row.get("differs") or ""),
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _sources(row: Mapping[str, Any]) -> list[str]:
    """`web.weight 3.0` of several sources, in the order of their names; nothing of one."""
    stated = {key: value for key, value in row.items() if key.startswith("dataset.sources")}
    return [
        f"{key.removeprefix('dataset.sources').lstrip('.')} {value}".strip()
        for key, value in sorted(stated.items())
        if value not in NOTHING
    ]


def _data(parts: Sequence[Any]) -> str:
    return " ".join(str(part) for part in parts if part is not None) or "unknown text"


def _hook_points(written: Any) -> str:
    if isinstance(written, str):
        written = [part.strip(" '\"") for part in written.strip("[]()").split(",")]
    hooks = [str(hook) for hook in written]
    return f"{hooks[0]} to {hooks[-1]} ({len(hooks)})" if len(hooks) > 2 else ", ".join(hooks)


def distinct(experiments: Iterable[Experiment]) -> list[Experiment]:
    """Without repetitions: the workspace repeats the experiment that was applied to it."""
    found: dict[tuple[Any, ...], Experiment] = {}
    for experiment in experiments:
        key = experiment[1:]
        if key not in found or found[key].name.split("/")[0] == "workspace":
            found[key] = experiment
    return list(found.values())


def told_apart(experiments: Sequence[Experiment]) -> list[Experiment]:
    """The same, sites that differ in the model's revision or in the text only being told apart by them."""
    found = []
    for experiment in experiments:
        same = [other for other in experiments if other.site == experiment.site]
        further = [
            f", {getattr(experiment, name)}" for name in ("revision", "data") if len({getattr(e, name) for e in same}) > 1
        ]
        found.append(experiment._replace(site=experiment.site + "".join(further)))
    return found


def front(experiments: Sequence[Experiment], loss: Callable[[Experiment], float]) -> list[Experiment]:
    """Those that no other one beats: by growing L0, each with a smaller loss than all before it."""
    best: list[Experiment] = []
    for experiment in sorted(experiments, key=lambda e: (e.l0, loss(e))):
        if not best or loss(experiment) < loss(best[-1]):
            best.append(experiment)
    return best


def pareto_charts(experiments: Sequence[Experiment], what: str = "experiment") -> list[ScatterChart]:
    """L0 against FVU and against delta cross entropy, a colour for each site; `what` they are, for the note."""
    sites = list(dict.fromkeys(e.site for e in experiments))
    note = f"lower left is better; the line joins what no other {what} beats in both"
    if len(sites) > MOST_SITES:
        note += f"; {len(sites) - MOST_SITES} more sites are in the table only"
    charts = []
    for key, (title, label) in FIGURES.items():

        def loss(experiment: Experiment, key: str = key) -> float:
            return float(getattr(experiment, key))

        groups = []
        for site in sites[:MOST_SITES]:
            own = [e for e in experiments if e.site == site]
            points, joined = (tuple(Point(e.l0, loss(e), e.name) for e in chosen) for chosen in (own, front(own, loss)))
            groups.append(Group(site, points, joined))
        baseline = _baseline(experiments, f"pca_{key}", several=len(sites) > 1)
        x_label, about = "mean L0 (active features a token)", note
        if baseline and len(groups) < MOST_SITES:
            groups.append(Group("PCA", baseline))
            x_label, about = "mean L0 (active features a token); of PCA its rank", f"{note}; {PCA_NOTE}"
        charts.append(ScatterChart(f"pareto_{key}", f"L0 and {title}", x_label, label, tuple(groups), about))
    return charts


def _baseline(experiments: Sequence[Experiment], key: str, several: bool) -> tuple[Point, ...]:
    """A point for each rank and site: PCA at its rank, which is not the L0 where this is a sum over layers."""
    found: dict[tuple[str, float], Point] = {}
    for e in experiments:
        value = getattr(e, key)
        if value is not None and e.pca_rank is not None:
            label = f"PCA {e.pca_rank:.0f}" + (f", {e.site}" if several else "")
            found.setdefault((e.site, e.pca_rank), Point(e.pca_rank, value, label))
    return tuple(found.values())


def table(experiments: Sequence[Experiment]) -> list[str]:
    """Lines of text, by site and L0, with PCA and its rank (at each written hook point) beside; an asterisk marks the front of
    FVU and of delta cross entropy. Of members of sweeps the last column says what each has of its own."""
    rows: list[tuple[str, ...]] = [
        ("experiment", "dictionary", "L0", "FVU", "of PCA", "delta CE", "of PCA", "PCA rank", "dead")
    ]
    if of_sweeps := any(e.differs for e in experiments):
        rows = [(*rows[0], "differs")]
    lines: list[tuple[str, list[tuple[str, ...]]]] = []
    for site in dict.fromkeys(e.site for e in experiments):
        own = sorted((e for e in experiments if e.site == site), key=lambda e: e.l0)
        fronts = [front(own, lambda e: e.fvu), front(own, lambda e: e.delta_ce)]
        cells: list[tuple[str, ...]] = []
        for e in own:
            marks = ["*" if e in chosen else " " for chosen in fronts]
            fvu, delta_ce = f"{e.fvu:.4f}{marks[0]}", f"{e.delta_ce:.4f}{marks[1]}"
            pca = ["-" if value is None else f"{value:.4f}" for value in (e.pca_fvu, e.pca_delta_ce)]
            rank = "-" if e.pca_rank is None else f"{e.pca_rank:.0f}"
            row = (e.name, e.about, f"{e.l0:.1f}", fvu, pca[0], delta_ce, pca[1], rank, f"{e.dead:.2%}")
            cells.append((*row, e.differs) if of_sweeps else row)
        lines.append((site, cells))
    widths = [max(len(row[i]) for row in [*rows, *(row for _, cells in lines for row in cells)]) for i in range(len(rows[0]))]

    def line(row: tuple[str, ...]) -> str:
        figures = [cell.rjust(width) for cell, width in zip(row[2:9], widths[2:9], strict=True)]
        return "  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), *figures, *row[9:]]).rstrip()

    found = []
    for site, cells in lines:
        found += [site, f"  {line(rows[0])}", *(f"  {line(row)}" for row in cells), ""]
    return found[:-1]
