"""What MLflow's pages show beside a run's figures: columns and charts of the table of runs, the experiment's note, a model.

MLflow keeps which columns a table has in the browser; a view that is shared lies in a tag of the experiment and is opened by
its key: #/experiments/<id>/runs?viewStateShareKey=scopeline. The note, above the table, has that link. A link that states an
order or a filter opens no view: the order of the rows is in the view.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.metric_names import HEADLINE

VIEW = "scopeline"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
NOTE_TAG = "mlflow.note.content"
KIND_TAG = "mlflow.experimentKind"  # which pages MLflow offers: those of training, not of chats
MARK = "<!-- written by scopeline -->"  # a note without it is the user's own
MAX_EXPERIMENT_TAG = 5000
MOST_RUNS = 200  # compared, the newest
MODEL_TYPE = "sparse dictionary"
_L0, _FVU, _DELTA_CE, _RECOVERED, _DEAD = HEADLINE
_AGAINST_L0 = (_FVU, _DELTA_CE)
_BARS = (*_AGAINST_L0, _RECOVERED, _DEAD)


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


# Columns from left to right and their widths in pixels: what decides stands beside the names, at 1,280 and with MLflow's side
# panel open, as it is at the first visit.
_PINNED = {_column("attributes", "Run Name"): 130, "runDateAndNestInfo": 122}
_COLUMNS = {
    _column("metrics", _L0): 85,
    _column("metrics", _FVU): 85,
    _column("metrics", _DELTA_CE): 110,
    _column("params", "dictionary.top_k"): 130,
    _column("metrics", _DEAD): 125,
    _column("metrics", "evaluation/pca_fvu"): 150,
    _column("tags", "differs"): 220,
    _column("params", "dictionary.act_fn"): 140,
    _column("params", "dictionary.hook_point_in"): 200,
}
PAGES = "&workflowType=machine_learning"  # which of MLflow's two menus is beside it


def view_state() -> dict[str, Any]:
    """The shared view: k, L0, FVU and what differs as columns; L0 against FVU and delta cross entropy, and bars, as charts."""
    section = "headline"
    common = {"deleted": False, "isGenerated": False, "metricSectionId": section, "runsCountToCompare": 100}
    scatter = [
        {**common, "type": "SCATTER", "uuid": f"l0-{i}", "xaxis": {"key": _L0, "type": "METRIC"},
         "yaxis": {"key": key, "type": "METRIC"}}
        for i, key in enumerate(_AGAINST_L0)
    ]  # fmt: skip
    bars = [{**common, "type": "BAR", "uuid": f"bar-{i}", "metricKey": key} for i, key in enumerate(_BARS)]
    return {
        "selectedColumns": [*_COLUMNS],
        "columnOrder": [*_PINNED, *_COLUMNS],
        "columnWidths": _PINNED | _COLUMNS,
        "orderByKey": _column("metrics", _L0),  # neighbours in the table are neighbours on the curve
        "orderByAsc": True,
        "compareRunCharts": [*scatter, *bars],
        "compareRunSections": [
            {"uuid": section, "name": "Which is best", "display": True, "isReordered": False, "columns": 2, "cardHeight": 300}
        ],
        "runsHiddenMode": "FIRST_20_RUNS",
        "isAccordionReordered": True,
    }


def offer_view(client: Any, experiment: Any) -> None:
    """Put the shared view into the experiment's tags, and a note with the way to it where there is none."""
    wanted = {VIEW_TAG: json.dumps(view_state(), separators=(",", ":"))}
    if KIND_TAG not in experiment.tags:
        wanted[KIND_TAG] = "custom_model_development"
    if NOTE_TAG not in experiment.tags:
        wanted[NOTE_TAG] = note(experiment.experiment_id, "")
    for key, value in wanted.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)


def note(experiment_id: str, text: str) -> str:
    """The experiment's note: the way to the view, then a text, cut at a line where it is too long."""
    link = f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}{PAGES}"
    links = f"**Which run is best:** [table by L0, with k, FVU and delta CE]({link}), [charts]({link}&compareRunsMode=CHART)"
    lines = [MARK, links, "", *text.splitlines()]
    while len("\n".join(lines)) > MAX_EXPERIMENT_TAG:
        lines.pop()
    return "\n".join(lines)


def describe_experiment(client: Any, experiment_id: str, text: str) -> None:
    """Write the experiment's note, unless somebody has written another one."""
    there = client.get_experiment(experiment_id).tags.get(NOTE_TAG, MARK)
    if there.startswith(MARK):
        client.set_experiment_tag(experiment_id, NOTE_TAG, note(experiment_id, text))


def experiment_rows(client: Any, experiment_id: str) -> list[dict[str, Any]]:
    """The newest runs of the experiment as rows: parameters, metrics of the evaluation without their group, "run", the id, and
    "Experiment", the name, of a member of a sweep after that of the sweep."""
    runs = client.search_runs([experiment_id], max_results=MOST_RUNS, order_by=["attributes.start_time DESC"])
    names = {run.info.run_id: run.info.run_name for run in runs}
    rows = []
    for run in runs:
        parent = names.get(run.data.tags.get("mlflow.parentRunId"))
        row: dict[str, Any] = {key: _value(text) for key, text in run.data.params.items()}
        row |= {key.removeprefix("evaluation/"): value for key, value in run.data.metrics.items() if "evaluation/" in key}
        row["metrics/train.json:tokens"] = run.data.metrics.get("train/tokens")
        row["learning_rate"] = run.data.metrics.get("train/learning_rate")
        row["run"] = run.info.run_id
        row["Experiment"] = f"{parent}/{run.info.run_name}" if parent else run.info.run_name
        rows.append(row)
    return rows


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
