"""The members of a sweep beside each other, by their evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.documents import Documents, Kept
from pipeline.evaluation.compared import interval_of
from pipeline.extent import interval_note
from pipeline.metric_names import flatten, ordinary
from pipeline.params.members import own_keys
from pipeline.plots.charts import number
from pipeline.plots.comparison import by_site, markdown
from pipeline.plots.experiment import Experiment, differs, read_experiment, sweep_of
from pipeline.plots.knee import advice, knee_lines
from pipeline.plots.page import Row, Table
from pipeline.plots.training_report import PAGE

if TYPE_CHECKING:
    from pipeline.params.schema import Params


def member_experiments(
    params: Params, metrics: Mapping[str, Mapping[str, Any]], documents: Mapping[str, Documents | None] | None = None
) -> list[Experiment]:
    """The members of a run's sweep that were evaluated, by their own names; their sites are hook points alone.

    Args:
        params: of the run.
        metrics: {member: its evaluation}.
        documents: what each evaluation has kept of its documents; None: it is not needed.
    """
    found = []
    for name, one in metrics.items():
        values = dict(flatten(params.members[name].to_dict()))
        row = {**values, **one, "Experiment": name, "differs": differs(own_keys(params, name))}
        if (experiment := read_experiment(row)) is not None:
            site, own = experiment.site.removeprefix(f"{params.model.model_name}, "), (documents or {}).get(name)
            found.append(experiment._replace(site=site, documents=None if own is None else Kept.of(own)))
    return found


def about_sweep(params: Params) -> str:
    """The run in a line: `sweep main, 6 members`."""
    n = len(params.members)
    return f"sweep {params.dictionary.name}, {n} member{'s' if n > 1 else ''}"


def about_members(
    params: Params, metrics: Mapping[str, Mapping[str, Any]], documents: Mapping[str, Documents | None] | None = None
) -> tuple[str, str]:
    """The members that were evaluated and their knee, in a line, and what they reached, in Markdown.

    Args:
        params, metrics, documents: as of :func:`member_experiments`.
    """
    experiments = member_experiments(params, metrics, documents)
    knees = [line for own in by_site(experiments).values() for line in knee_lines(own)]
    line = "; ".join([sweep_of(name for name in params.members if name in metrics), *knees])
    return line, "\n".join([f"**{line}**", "", *markdown(experiments, "member")])


def members_table(experiments: Sequence[Experiment], metrics: Mapping[str, Mapping[str, float]]) -> Table:
    """The members beside each other, each with a link to its page, and what follows from them: the knee."""
    columns = ("L0", "FVU (95 %)", "PCA", "delta cross entropy (95 %)", "PCA", "loss recovered", "dead")
    rows = []
    for e in experiments:
        own = metrics[e.name]
        fvu, delta = (_with_interval(own, key) for key in (ordinary(own, "fvu"), "delta_ce"))
        cells = (e.l0, fvu, e.pca_fvu, delta, e.pca_delta_ce, own["loss_recovered_mean"], f"{e.dead:.2%}")
        rows.append(Row(e.name, e.differs or "as the run's parameters", cells, f"{e.name}/{PAGE}"))
    note = f"Loss recovered is that against the mean. {interval_note(next(iter(metrics.values())))}"
    points = tuple(line for own in by_site(experiments).values() for line in advice(own))
    return Table("Members", columns, tuple(rows), note, points)


def _with_interval(metrics: Mapping[str, float], key: str) -> str:
    ends = interval_of(metrics, key)
    return number(metrics[key]) + (f" ({number(ends[0])} to {number(ends[1])})" if ends else "")
