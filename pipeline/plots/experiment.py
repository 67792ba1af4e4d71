"""Experiments and members of sweeps as they are compared: what is read of a row of DVC, and which are alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.extent import Extent
from pipeline.metric_names import ordinary

if TYPE_CHECKING:
    from pipeline.documents import Kept

NOTHING = (None, "None", "-", "")  # what DVC gives for null, and for what a row does not have
FIGURES_OF_A_ROW = ("l0_mean", "fvu", "delta_ce", "dead_fraction")
_TEXT = ("dataset_name_or_path", "config_name", "split", "messages_field")
# Parameters that tell runs of a group apart; what has a column of its own, or makes another group, is none of them.
_OWN = ("activations.", "dictionary.", "fold.", "initializer.", "trainer.", "norm.")
_SAID = (
    "dictionary.name",
    "dictionary.kind",
    "dictionary.act_fn",
    "dictionary.top_k",
    "trainer.lr",
    "trainer.total_training_tokens",
)
_TRAINING = "metrics/train.json:"
DOCUMENTS = "documents of the evaluation"  # in a row: Callable[[str], Kept], by the name of a member
MEMBER = "member of the sweep"  # of a row that is one
# What makes groups of the experiments of one model and hook points, and the parameters that it follows from.
_APART = {"revision": "model.revision", "data": "dataset", "evaluated": "evaluation.tokens"}
MOST_DIFFERENCES = 4


class Experiment(NamedTuple):
    """What one experiment reached.

    Attributes:
        name: of the experiment, or a revision; of a member of a sweep `experiment/member`.
        site: model and hook points written, and what else experiments of these differ in so that they are not comparable
            (:func:`told_apart`); only experiments of one site are compared.
        about: kind, activation function and top_k.
        l0, fvu, delta_ce, dead: metrics of its evaluation, massive tokens left out where it has told them (not in evaluations
            of before); l0 of several layers is the sum of theirs.
        pca_fvu, pca_delta_ce, pca_rank: of the baseline; its rank is of each written hook point. None: not measured.
        revision, data, evaluated: of the model; the text; held-out tokens that it was evaluated on. They are part of the site
            where experiments differ in them.
        differs: what a member of a sweep has of its own (:func:`differs`), or what tells it from others of its site.
        fvu_interval, delta_ce_interval: ends of the 95 % intervals. None: not measured.
        trained: tokens trained on. None: not known.
        lr: learning rate; "auto" where it has not been resolved yet.
        seed: of the run.
        stated: (key, value) of the parameters that may tell it from others.
        gate: kind and activation function.
        kind: of the dictionary.
        extent: documents of the evaluated tokens. None: they were not counted.
        documents: what its evaluation has kept of each of them, read when it is asked for; of no account where experiments are
            told apart. None: nothing is known of it.
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
    evaluated: str = ""
    differs: str = ""
    fvu_interval: tuple[float, float] | None = None
    delta_ce_interval: tuple[float, float] | None = None
    trained: float | None = None
    lr: str = ""
    seed: str = ""
    stated: tuple[tuple[str, str], ...] = ()
    gate: str = ""
    kind: str = ""
    extent: Extent | None = None
    documents: Kept | None = None


def differs(keys: Mapping[str, Any]) -> str:
    """{dotted key: value} in words, keys of the dictionary without their section: `top_k 16, trainer.lr 0.0002`."""
    return ", ".join(f"{key.removeprefix('dictionary.')} {_shown(value)}" for key, value in keys.items())


def sweep_of(members: Iterable[str]) -> str:
    """What a sweep is, in words: `sweep of 3: k8, k32, k96`."""
    names = list(members)
    return f"sweep of {len(names)}: {_few(names)}"


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
        metrics |= {f"{_TRAINING}{key}": value for key, value in _under(row, f"{_TRAINING}{name}.").items()}
        experiment = {"Experiment": f"{row.get('Experiment') or row.get('rev')}/{name}"}
        found.append({**shared, **keys, **metrics, **experiment, MEMBER: name, "differs": differs(keys)})
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
    kind = str(field("dictionary.kind") or "dictionary")
    act_fn, top_k = field("dictionary.act_fn") or "", field("dictionary.top_k")
    act = f"{act_fn} {top_k:.0f}" if "topk" in str(act_fn) and isinstance(top_k, int | float) else str(act_fn)
    evaluated, lr = _number(row.get("evaluated_tokens")), _number(_of_training(row, "learning_rate")) or field("trainer.lr")
    return Experiment(
        name=str(row.get("Experiment") or row.get("rev")),
        site=f"{field('model.model_name') or 'model'}, {_hook_points(written)}",
        about=f"{kind} {act}".strip(),
        l0=figures[0],
        fvu=figures[1],
        delta_ce=figures[2],
        dead=figures[3],
        pca_fvu=_number(row.get(ordinary(row, "pca_fvu"))),
        pca_delta_ce=_number(row.get("pca_delta_ce")),
        pca_rank=_number(row.get("pca_rank")),
        revision=str(field("model.revision") or "default revision"),
        data=_data(_sources(row) or [field(f"dataset.{name}") for name in _TEXT]),
        evaluated="" if evaluated is None else f"{evaluated:,.0f} held-out tokens",
        differs=str(row.get("differs") or ""),
        fvu_interval=_interval(row, ordinary(row, "fvu")),
        delta_ce_interval=_interval(row, "delta_ce"),
        trained=_number(_of_training(row, "tokens")) or _number(field("trainer.total_training_tokens")),
        lr=f"{lr:.3g}" if isinstance(lr, float) else str(lr or ""),
        seed=f"{seed:g}" if isinstance(seed := row.get("seed"), int | float) else "",
        stated=tuple((key, _shown(field(key))) for key in row if key.startswith(_OWN) and key not in _SAID),
        gate=f"{kind} {act_fn}".strip(),
        kind=kind,
        extent=Extent.of(row),
        documents=_documents(row),
    )


def _documents(row: Mapping[str, Any]) -> Kept | None:
    """By DOCUMENTS a row has what gives those of a member, of "" without a sweep; by MEMBER its own."""
    of_member = row.get(DOCUMENTS)
    return None if of_member is None else of_member(str(row.get(MEMBER) or ""))


def _of_training(row: Mapping[str, Any], name: str) -> Any:
    """A figure of metrics/train.json; DVC puts the file before a name that another file of metrics has too."""
    whole = row.get(f"{_TRAINING}{name}")
    return row.get(name) if whole in NOTHING else whole


def _interval(row: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    low, high = (_number(row.get(f"{name}_{end}")) for end in ("low", "high"))
    return None if low is None or high is None else (low, high)


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


def distinct(experiments: Iterable[Experiment]) -> tuple[list[Experiment], list[str]]:
    """(the experiments without repetitions, lines on experiments that repeat others): the workspace repeats the one that was
    applied to it, and an experiment in which nothing was changed the one before it."""
    found: dict[tuple[Any, ...], list[Experiment]] = {}
    for experiment in experiments:
        found.setdefault(experiment._replace(documents=None)[1:], []).append(experiment)
    shown: list[Experiment] = []
    repeated: dict[str, str] = {}
    for same in found.values():
        named = [e for e in same if e.name.split("/")[0] != "workspace"] or same[:1]
        shown.append(named[0])
        for e in named[1:]:
            repeated.setdefault(e.name.split("/")[0], named[0].name.split("/")[0])
    return shown, [
        f"{name} has the figures of {first} throughout: it is shown as {first} alone" for name, first in repeated.items()
    ]


def told_apart(experiments: Sequence[Experiment]) -> list[Experiment]:
    """The same, sites that differ only in the model's revision, in the text or in the tokens of the evaluation being told apart
    by them; of those of one site with the parameters in which they differ."""
    found = []
    for experiment in experiments:
        same = [other for other in experiments if other.site == experiment.site]
        further = [f", {getattr(experiment, name)}" for name in _APART if len({getattr(e, name) for e in same}) > 1]
        found.append(experiment._replace(site=experiment.site + "".join(further)))
    return [e._replace(differs=e.differs or _differences(e, [o for o in found if o.site == e.site])) for e in found]


def why_apart(experiments: Sequence[Experiment]) -> list[str]:
    """A line for each model and hook points whose experiments are several groups: the keys that make them, with their values
    and whose they are.

    Args:
        experiments: before :func:`told_apart`.
    """
    lines = []
    for site in dict.fromkeys(e.site for e in experiments):
        same, keys = [e for e in experiments if e.site == site], []
        for name, key in _APART.items():
            values: dict[str, list[str]] = {}
            for e in same:
                values.setdefault(getattr(e, name) or "not known", []).append(e.name)
            if len(values) > 1:
                keys.append(f"{key}: " + " / ".join(f"{value} ({_few(names)})" for value, names in values.items()))
        if keys:
            lines.append(f"{site} is in several groups, which cannot be compared. They differ in {'; '.join(keys)}")
    return lines


def _few(names: Sequence[str]) -> str:
    more = len(names) - MOST_DIFFERENCES
    return ", ".join(names[:MOST_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")


def _differences(experiment: Experiment, same: Sequence[Experiment]) -> str:
    """The parameters of an experiment that another one of its site has otherwise, the first ones of many."""
    others = [dict(other.stated) for other in same]
    keys = {key: value for key, value in experiment.stated if any(other.get(key, value) != value for other in others)}
    few = dict(list(keys.items())[:MOST_DIFFERENCES])
    return differs(few) + (f" and {len(keys) - len(few)} more" if len(keys) > len(few) else "")
