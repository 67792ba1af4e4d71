"""What MLflow's pages show beside a run's figures: columns and charts of the table of runs, the experiment's note, a model.
And what is read back of runs: their figures, and files that they keep.

MLflow keeps which columns a table has in the browser; a view that is shared lies in a tag of the experiment and is opened by
its key: #/experiments/<id>/runs?viewStateShareKey=scopeline. The note, above the table, has that link. A link that states an
order or a filter opens no view: the order of the rows is in the view.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.metric_names import HEADLINE
from pipeline.tracking.tracker import RunGroup

VIEW = "scopeline"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
NOTE_TAG = "mlflow.note.content"
KIND_TAG = "mlflow.experimentKind"  # which pages MLflow offers: those of training, not of chats
MARK = "<!-- written by scopeline -->"  # a note without it is the user's own
MAX_EXPERIMENT_TAG = 5000
MOST_RUNS = 200  # compared, the newest
MODEL_TYPE = "sparse dictionary"
GROUP_TAG = "group"  # of a run: number of its group and what it is
_L0, _FVU, _PCA_FVU, _DELTA_CE, _PCA_DELTA_CE, _, _DEAD = HEADLINE
_SECTION, _ALL = "group ", "all"  # section of charts of a group, and of all runs
MAX_SECTION_NAME = 100


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


# Columns from left to right and their widths in pixels: what decides stands beside the names, at 1,280 and with MLflow's side
# panel open, as it is at the first visit.
_PINNED = {_column("attributes", "Run Name"): 130, "runDateAndNestInfo": 122}
_COLUMNS = {
    _column("metrics", _L0): 75,
    _column("metrics", _FVU): 80,
    _column("metrics", _DELTA_CE): 105,
    _column("params", "dictionary.top_k"): 130,
    _column("tags", GROUP_TAG): 110,
    _column("metrics", _PCA_FVU): 110,
    _column("metrics", _PCA_DELTA_CE): 140,
    _column("metrics", _DEAD): 125,
    _column("tags", "differs"): 340,
    _column("params", "dictionary.act_fn"): 140,
    _column("params", "dictionary.hook_point_in"): 200,
}
PAGES = "&workflowType=machine_learning"  # which of MLflow's two menus is beside it


def view_state(groups: Mapping[str, str]) -> dict[str, Any]:
    """The shared view: k, L0, FVU, PCA's, and what differs as columns; as charts for each group of runs that can be compared L0
    against FVU and against delta cross entropy, and bars of both; of all runs the share of dead features.

    Args:
        groups: {number: what it is}, the newest first.
    """
    charts: list[dict[str, Any]] = []
    for number in groups:
        place, losses = f"{_SECTION}{number}", [group_metric(number, name) for name in ("FVU", "delta CE")]
        for i, key in enumerate(losses):
            axes = {"xaxis": {"key": _L0, "type": "METRIC"}, "yaxis": {"key": key, "type": "METRIC"}}
            charts.append({"type": "SCATTER", "uuid": f"l0-{number}-{i}", "metricSectionId": place, **axes})
        for i, key in enumerate(losses):
            charts.append({"type": "BAR", "uuid": f"bar-{number}-{i}", "metricSectionId": place, "metricKey": key})
    charts.append({"type": "BAR", "uuid": "bar", "metricSectionId": _ALL, "metricKey": _DEAD})
    sections = {f"{_SECTION}{number}": f"{_SECTION}{number}: {about}" for number, about in groups.items()} | {_ALL: "all runs"}
    return {
        "selectedColumns": [*_COLUMNS],
        "columnOrder": [*_PINNED, *_COLUMNS],
        "columnWidths": _PINNED | _COLUMNS,
        "orderByKey": _column("metrics", _L0),  # neighbours in the table are neighbours on the curve
        "orderByAsc": True,
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": key, "name": name[:MAX_SECTION_NAME], "display": True, "columns": 2, "cardHeight": 300}
            for key, name in sections.items()
        ],
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
    }


def group_metric(number: str, name: str) -> str:
    """The key of a figure that only runs of this group have, so that its chart shows no others; sorts after the headline."""
    return f"{_SECTION}{number}/{name}"


def _view(groups: Mapping[str, str]) -> str:
    """The view as text, with as many of the newest groups as a tag has room for."""
    kept = dict(groups)
    while True:
        text = json.dumps(view_state(kept), separators=(",", ":"))
        if len(text) <= MAX_EXPERIMENT_TAG or not kept:
            return text
        kept.popitem()


def _groups_of(view: str | None) -> dict[str, str]:
    """{number: what it is} of the groups that a view has."""
    try:
        sections = json.loads(view or "{}")["compareRunSections"]
        names = [section["name"].removeprefix(_SECTION) for section in sections if section["uuid"].startswith(_SECTION)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return dict(name.partition(": ")[::2] for name in names)


def group_runs(client: Any, experiment_id: str, groups: Sequence[RunGroup]) -> None:
    """Number the groups, in the tag and in metrics of each run that lacks them, and give each its charts in the view.

    A group keeps the number that its oldest run has; a new one gets the next free one.

    Args:
        client: MLflow's.
        experiment_id: of the experiment with all their runs.
        groups: the newest first; those of one run alone have charts only where there are no others.
    """
    from mlflow.entities import Metric, RunTag

    runs = {run.info.run_id: run for run in _newest_runs(client, experiment_id)}
    numbers: dict[int, str] = {}
    given = [_number_of(run) for run in runs.values()]
    for i, group in reversed([*enumerate(groups)]):  # the oldest first
        own = [_number_of(runs[run_id]) for run_id in [*group.figures][::-1] if run_id in runs]
        number = next((n for n in own if n and n not in numbers.values()), "")
        if not number:
            number = str(1 + max((int(n) for n in [*given, *numbers.values()] if n), default=0))
        numbers[i] = number
        now, tag = int(time.time() * 1000), f"{number}: {group.about}"
        for run_id, figures in group.figures.items():
            if run_id not in runs:
                continue
            data, wanted = runs[run_id].data, {group_metric(number, name): value for name, value in figures.items()}
            if data.tags.get(GROUP_TAG) == tag and all(data.metrics.get(key) == value for key, value in wanted.items()):
                continue
            client.log_batch(
                run_id, [Metric(key, value, now, 0) for key, value in wanted.items()], (), [RunTag(GROUP_TAG, tag)]
            )
    several = [len(group.figures) > 1 for group in groups]  # a run alone is compared with nothing
    shown = {numbers[i]: group.about for i, group in enumerate(groups) if several[i] or not any(several)}
    client.set_experiment_tag(experiment_id, VIEW_TAG, _view(shown))


def _number_of(run: Any) -> str:
    """The number of the group that a run has been given; "": none."""
    number = run.data.tags.get(GROUP_TAG, "").partition(":")[0]
    return number if number.isdecimal() else ""


def _newest_runs(client: Any, experiment_id: str) -> list[Any]:
    return list(client.search_runs([experiment_id], max_results=MOST_RUNS, order_by=["attributes.start_time DESC"]))


def offer_view(client: Any, experiment: Any) -> None:
    """Put the shared view into the experiment's tags, and a note with the way to it where there is none."""
    wanted = {VIEW_TAG: _view(_groups_of(experiment.tags.get(VIEW_TAG)))}
    if KIND_TAG not in experiment.tags:
        wanted[KIND_TAG] = "custom_model_development"
    if NOTE_TAG not in experiment.tags:
        wanted[NOTE_TAG] = note(experiment.experiment_id, "")
    for key, value in wanted.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)


def note(experiment_id: str, text: str, first: str = "") -> str:
    """The experiment's note: the way to the view and a sentence, in the one line that MLflow shows of a folded note, then a
    text, cut at a line where it is too long."""
    link = f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}{PAGES}"
    links = f"**Which run is best:** [table by L0]({link}), [charts]({link}&compareRunsMode=CHART)"
    lines = [f"{links}; {first}" if first else links, "", *text.splitlines()]
    while len("\n".join([*lines, "", MARK])) > MAX_EXPERIMENT_TAG:
        lines.pop()
    return "\n".join([*lines, "", MARK])  # at the end: the list of experiments shows how a note begins


def describe_experiment(client: Any, experiment_id: str, text: str, first: str) -> None:
    """Write the experiment's note, unless somebody has written another one."""
    there = client.get_experiment(experiment_id).tags.get(NOTE_TAG, MARK)
    if MARK in there:
        client.set_experiment_tag(experiment_id, NOTE_TAG, note(experiment_id, text, first))


def experiment_rows(client: Any, experiment_id: str) -> list[dict[str, Any]]:
    """The newest runs of the experiment as rows: parameters, metrics of the evaluation without their group, "run", the id, and
    "Experiment", the name, of a member of a sweep after that of the sweep."""
    runs = _newest_runs(client, experiment_id)
    names = {run.info.run_id: run.info.run_name for run in runs}
    rows = []
    for run in runs:
        parent = names.get(run.data.tags.get("mlflow.parentRunId"))
        row: dict[str, Any] = {key: _value(text) for key, text in run.data.params.items()}
        row |= {key.removeprefix("evaluation/"): value for key, value in run.data.metrics.items() if "evaluation/" in key}
        row["metrics/train.json:tokens"] = run.data.metrics.get("train/tokens")
        row["learning_rate"] = run.data.metrics.get("train/learning_rate")
        row["run"] = run.info.run_id
        name = str(run.info.run_name)
        row["Experiment"] = f"{parent}/{name}" if parent and "/" not in name else name
        rows.append(row)
    return rows


def artifact(client: Any, run_id: str, name: str) -> bytes | None:
    """The content of a file among a run's artifacts; None: it is not there."""
    if name not in {each.path for each in client.list_artifacts(run_id, name.rpartition("/")[0])}:
        return None
    with tempfile.TemporaryDirectory() as place:
        return Path(client.download_artifacts(run_id, name, place)).read_bytes()


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def model_of(client: Any, run_id: str) -> str | None:
    """Id of the model that a run has made, if there is one."""
    outputs = getattr(client.get_run(run_id).outputs, "model_outputs", None)
    return outputs[0].model_id if outputs else None


def make_model(client: Any, run_id: str, name: str, about: Mapping[str, str], files: Sequence[str]) -> None:
    """A model that the run has made, with its parameters and some small files; a run makes one."""
    if model_of(client, run_id) is not None:
        return
    from mlflow.entities import LoggedModelOutput

    experiment_id = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment_id, name, source_run_id=run_id, params=dict(about), model_type=MODEL_TYPE)
    for file in files:
        client.log_model_artifact(model.model_id, file, "")
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def log_model_metrics(client: Any, run_id: str, values: Mapping[str, float], when: int) -> None:
    """Figures of the model that the run has made; of a run that has made none nothing."""
    model_id = model_of(client, run_id)
    if model_id is None:
        return
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(key, value, when, 0, model_id=model_id) for key, value in values.items()])
