"""All metrics of an evaluation as tables: beside their baselines, by group with definitions, by hook point and by model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pipeline.evaluation.compared import compared
from pipeline.evaluation.sparsity import QUANTILES, quantile_key
from pipeline.extent import interval_note
from pipeline.hook_keys import by_model
from pipeline.metric_names import DEFINITIONS, EVALUATION, MetricKey, read_key
from pipeline.plots.charts import number
from pipeline.plots.page import Row, Table

PARTS = tuple(quantile_key("", q).removeprefix("_") for q in QUANTILES)
ORDINARY = "_ordinary"  # ends the names of metrics without massive tokens
WITH_MASSIVE = "all tokens, massive ones included"
OVER_ALL = ("Reconstruction", "Sparsity", "Names of SAEBench")  # groups of metrics over all tokens, where not said otherwise
FVU_BASELINES = ("pca_fvu", "zero_fvu")
SHARES = tuple(f"{round(100 * q)} %" for q in QUANTILES)


def compared_table(metrics: Mapping[str, float], massive: str | None = None) -> Table:
    """The metrics that have baselines; `massive` says how many tokens are massive, None: none is."""
    rows = [Row(c.name, c.about, (_with_interval(c.value, c.interval), c.pca, c.mean, c.zero)) for c in compared(metrics)]
    columns = ("this dictionary (95 %)", f"PCA of rank {metrics['pca_rank']:.0f}", "mean", "zero")
    note = f"{interval_note(metrics)} PCA, the mean and zeros stand in the place of the reconstruction."
    if massive is not None:
        note += f" {massive}. FVU is of the others. Below, tables that include massive tokens say so."
    return Table("Beside its baselines", columns, tuple(rows), note)


def metric_tables(metrics: Mapping[str, float], hooks_in: Sequence[str], hooks_out: Sequence[str]) -> list[Table]:
    """Every metric, each once.

    Args:
        metrics: flat, as in metrics/evaluation.json.
        hooks_in, hooks_out: of the dictionary.
    """
    known = {found: value for key, value in metrics.items() if (found := read_key(key)) is not None}
    tables = [_group(title, names, known) for title, names in _groups(metrics).items()]
    aliases = [alias for alias in by_model((*hooks_in, *hooks_out)) if alias]
    read = [hook for hook in hooks_in if hook not in hooks_out]
    tables.append(_by_place("At each written hook point", hooks_out, known, "all"))
    tables.append(_by_place("At each layer of features", read, known, "all"))
    tables.append(_by_place("In the further models", aliases, known, "main model"))
    single = {*hooks_in, *hooks_out, *aliases, ""}
    tables.append(_pairs(dict.fromkeys(key.place for key in known if key.place not in single), known))
    tables.append(_undefined({key: value for key, value in metrics.items() if read_key(key) is None}))
    return [table for table in tables if table.rows]


def _groups(metrics: Mapping[str, float]) -> dict[str, list[str]]:
    """{title: metrics}; with massive tokens those without them come first, and what includes them says so, beside its PCA."""
    if not metrics.get("massive_tokens"):
        return {title: list(names) for title, names in EVALUATION.items()}
    found: dict[str, list[str]] = {"Without massive tokens": [name for name in DEFINITIONS if name.endswith(ORDINARY)]}
    for title, names in EVALUATION.items():
        rest = [name for name in names if not name.endswith(ORDINARY)]
        if title == "Reconstruction":
            rest = ["fvu", *FVU_BASELINES, *(name for name in rest if name != "fvu")]
        elif title == "Baselines":
            rest = [name for name in rest if name not in FVU_BASELINES]
        found[f"{title}: {WITH_MASSIVE}" if title in OVER_ALL else title] = rest
    return found


def _group(title: str, names: Iterable[str], known: Mapping[MetricKey, float]) -> Table:
    """The figures of the whole; columns of quantiles where there are any."""
    rows, quantiles = [], False
    for name in names:
        cells = _quantiles(name, "", known)
        value = _figure(name, "", known)
        quantiles = quantiles or any(cell is not None for cell in cells)
        if value is not None or any(cell is not None for cell in cells):
            rows.append(Row(name, DEFINITIONS[name], (value, *cells)))
    if not quantiles:
        rows = [row._replace(cells=row.cells[:1]) for row in rows]
    return Table(title, ("", *SHARES) if quantiles else ("",), tuple(rows))


def _by_place(title: str, places: Sequence[str], known: Mapping[MetricKey, float], whole: str) -> Table:
    """A column for each hook point or model, and one for the whole."""
    there = [place for place in places if any(key.place == place for key in known)]
    rows = []
    groups = _groups({key.name: value for key, value in known.items() if not (key.part or key.place)})
    for name, about in ((name, DEFINITIONS[name]) for names in groups.values() for name in names):
        for part, share in (("", ""), *zip(PARTS, SHARES, strict=True)):
            cells = [_figure(name, place, known, part) for place in ("", *there)]
            if any(cell is not None for cell in cells[1:]):
                rows.append(Row(f"{name}, {share}" if share else name, about, tuple(cells)))
    return Table(title, (whole, *there), tuple(rows))


def _pairs(places: Iterable[str], known: Mapping[MetricKey, float]) -> Table:
    rows = [Row(place, "", tuple(_quantiles("written_cosine", place, known))) for place in places]
    return Table("Cosine similarity between hook points", SHARES, tuple(rows), DEFINITIONS["written_cosine"])


def _undefined(rest: Mapping[str, float]) -> Table:
    return Table("Others", ("",), tuple(Row(key, "", (value,)) for key, value in rest.items()))


def _quantiles(name: str, place: str, known: Mapping[MetricKey, float]) -> list[float | None]:
    return [known.get(MetricKey(name, part, place)) for part in PARTS]


def _figure(name: str, place: str, known: Mapping[MetricKey, float], part: str = "") -> float | str | None:
    """The figure, with its interval where there is one."""
    value = known.get(MetricKey(name, part, place))
    low, high = (known.get(MetricKey(name, end, place)) for end in ("low", "high"))
    return value if value is None or part or low is None or high is None else _with_interval(value, (low, high))


def _with_interval(value: float, interval: tuple[float, float] | None) -> float | str:
    return value if interval is None else f"{number(value)} ({number(interval[0])} to {number(interval[1])})"
