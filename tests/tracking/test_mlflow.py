"""One MLflow run across stages; reopened, continued, resumed after a kill; buffered; what it holds."""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import subprocess
import sys

import pytest

from pipeline.errors import DataError, Interrupted
from pipeline.metric_names import HEADLINE
from pipeline.params.loader import tracking_of
from pipeline.tracking.mlflow_runs import MlflowTracker
from pipeline.tracking.opening import open_tracker
from pipeline.tracking.outcome import outcome_told
from tests.project import REPOSITORY

RUN_FILE = "data/run.json"


def _open(params, stage="train", **options):
    return open_tracker(params, stage=stage, run_file=RUN_FILE, **options)


def _mlflow(tracker) -> MlflowTracker:
    assert isinstance(tracker, MlflowTracker)
    return tracker


def _kill(tracker) -> None:
    """As kill -9: nothing is written any more."""
    tracker._closed = True
    atexit.unregister(tracker.close)


def _steps(client, run_id, key) -> list[int]:
    return [metric.step for metric in client.get_metric_history(run_id, key)]


def test_one_run_across_stages(tracked, client, params):
    with _open(params) as tracker:
        tracker.log_params({"seed": 0, "trainer": {"lr": 2e-4, "betas": [0.9, 0.99]}, "model": {"revision": None}})
        for step in range(3):
            tracker.log_metrics({"l0": 24.0 + step}, step)
    first = tracker.run_id
    assert json.loads((tracked / RUN_FILE).read_text()) == {"run_id": first}
    for stage, values in (("fold", {"l0_after": 23.5}), ("evaluate", {"fvu": 0.125}), ("analyze", {})):
        assert client.get_run(first).info.status == "RUNNING"  # between the stages too
        with _open(params, stage) as tracker:
            assert tracker.run_id == first
            assert client.get_run(first).info.status == "RUNNING"
            tracker.log_params({"seed": 0, "trainer": {"lr": 2e-4}})
            tracker.log_metrics(values)
    run = client.get_run(first)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"train/l0": 26.0, "fold/l0_after": 23.5, "evaluation/fvu": 0.125}
    assert run.data.params == {"seed": "0", "trainer.lr": "0.0002", "trainer.betas": "[0.9, 0.99]", "model.revision": "null"}
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_experiment_and_artifacts_are_in_the_project(tracked, client, params):
    with _open(params) as tracker:
        (tracked / "plots").mkdir()
        (tracked / "plots" / "index.html").write_text("<p>plot</p>")
        (tracked / "weights.bin").write_bytes(b"123")
        tracker.log_artifact(tracked / "plots", "report")
        tracker.log_artifact("weights.bin", "weights")
        tracker.log_artifact("weights.bin")
    run = client.get_run(tracker.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "scopeline"
    assert run.info.artifact_uri == f"file://{tracked}/mlartifacts/{tracker.run_id}/artifacts"
    kept = tracked / "mlartifacts" / tracker.run_id / "artifacts"
    assert {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()} == {
        "report/index.html", "weights/weights.bin", "weights.bin",
    }  # fmt: skip
    assert not (tracked / "mlruns").exists()


def test_a_missing_artifact_is_said_and_harmless(tracked, client, params, capsys):
    with _open(params) as tracker:
        tracker.log_artifact("no-such-file", "x")
        tracker.log_metrics({"l0": 1.0}, 1)
    assert "MLflow could not keep no-such-file" in capsys.readouterr().err
    assert client.get_run(tracker.run_id).data.metrics == {"train/l0": 1.0}


@pytest.mark.parametrize(("name", "run_name", "given", "wanted"), [
    ("brave-lynx", "mine", "what", "brave-lynx"), (None, "mine", "what", "mine"), (None, None, "what", "what"), (None, None, None, "train"),
])  # fmt: skip
def test_run_name(tracked, client, params, monkeypatch, name, run_name, given, wanted):
    if name:
        monkeypatch.setenv("DVC_EXP_NAME", name)
    import dataclasses

    with _open(dataclasses.replace(params, run_name=run_name), name=given) as tracker:
        pass
    assert client.get_run(tracker.run_id).info.run_name == wanted


def test_the_outcome_of_the_stage_is_the_status(tracked, client, params):
    ids = {}
    for error, wanted in ((Interrupted("stop"), "KILLED"), (KeyboardInterrupt(), "KILLED"), (RuntimeError("bug"), "FAILED")):
        tracker = _open(params)
        with pytest.raises(type(error)), tracker:
            raise error
        ids[tracker.run_id] = wanted
    assert {run_id: client.get_run(run_id).info.status for run_id in ids} == ids


def test_a_stage_that_is_run_again_by_itself_ends_the_run_again_and_a_failed_one_is_gone_on_with(tracked, client, params):
    for stage in ("train", "analyze", "evaluate"):
        with _open(params, stage) as tracker:
            pass
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    with pytest.raises(RuntimeError), _open(params, "evaluate"):
        raise RuntimeError
    assert client.get_run(tracker.run_id).info.status == "FAILED"
    with _open(params, "evaluate"):
        pass
    assert client.get_run(tracker.run_id).info.status == "RUNNING"  # analyze comes
    with _open(params, "analyze"):
        pass
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (RuntimeError("bug"), "FAILED"),
        (DataError("torn"), "FAILED"),
        (Interrupted("stop"), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_a_stage_that_fails_before_it_logs_is_told(tracked, client, params, error, wanted):
    (tracked / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    called = []

    @outcome_told("fold", tracking_of)
    def main(params: str, run: str, other: int) -> None:
        called.append(other)
        raise error

    with pytest.raises(type(error)):  # no run: none is made
        main(params="params.yaml", run=RUN_FILE, other=1)
    assert client.get_experiment_by_name("scopeline") is None
    runs = {}
    for member in ("", "k8"):
        with _open(params, member=member) as tracker:
            runs[member] = tracker.run_id
    with pytest.raises(type(error)):
        main(params="params.yaml", run=RUN_FILE, other=2)
    assert {client.get_run(run_id).info.status for run_id in runs.values()} == {wanted}
    (tracked / "params.yaml").write_text("no: parameters")  # what failed stays what is told
    with pytest.raises(type(error)):
        main(params="params.yaml", run=RUN_FILE, other=3)
    assert called == [1, 2, 3]


@pytest.mark.parametrize(("experiment", "stated", "wanted"), [
    ("brave-lynx", None, "brave-lynx (top_k 8)"), ("smol-sweep-1", None, "smol-sweep-1 (top_k 8)"), ("k8", None, "k8"), (None, "mine", "mine"), (None, None, "main (top_k 8)"),
])  # fmt: skip
def test_a_name_that_nobody_has_chosen_says_what_differs(tracked, client, params, monkeypatch, experiment, stated, wanted):
    if experiment:
        monkeypatch.setenv("DVC_EXP_NAME", experiment)
    with _open(dataclasses.replace(params, run_name=stated), name="main", about="top_k 8") as tracker:
        pass
    assert client.get_run(tracker.run_id).info.run_name == wanted
    with _open(params, name="main", about="k" * 300) as tracker:
        pass
    assert len(client.get_run(tracker.run_id).info.run_name) < 110


def test_the_model_of_a_run_with_figures_of_its_own(tracked, client, params):
    (tracked / "config.json").write_text("{}")
    with _open(params) as tracker:
        tracker.log_model_metrics({"core/FVU": 0.5})  # none yet
    for _ in range(2):  # a stage that is run again makes no second one
        with _open(params, "fold") as tracker:
            tracker.log_model("main", {"kind": "sae", "top_k": 24}, [tracked / "config.json"])
    with _open(params, "evaluate") as tracker:
        tracker.log_model_metrics({"core/FVU": 0.25, "core/L0": float("nan")})
    run = client.get_run(tracker.run_id)
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert (model.name, model.source_run_id, model.params) == ("main", tracker.run_id, {"kind": "sae", "top_k": "24"})
    assert [(metric.key, metric.value) for metric in model.metrics] == [("core/FVU", 0.25)]
    assert str(model.status) == "READY"


def first_of(note: str) -> str:
    """The line that MLflow shows of a folded note."""
    return next(line for line in note.splitlines() if not line.startswith("<!--"))


def test_the_table_of_runs_has_a_view_and_a_note_that_a_user_may_write(tracked, client, params):
    with _open(params) as tracker:
        tracker.describe_experiment("| a |\n" + "long line\n" * 900, "knee: k16")
    experiment = client.get_experiment_by_name("scopeline")
    view = json.loads(experiment.tags["mlflow.sharedViewState.scopeline"])
    assert {"params.`dictionary.top_k`", "metrics.`core/FVU`", "tags.`differs`"} <= set(view["selectedColumns"])
    assert [chart["metricKey"] for chart in view["compareRunCharts"]] == ["core/dead share"]  # no groups yet
    assert {name for name in HEADLINE if f"metrics.`{name}`" in view["selectedColumns"]} == {*HEADLINE} - {
        "core/loss recovered"
    }
    assert view["columnOrder"] == [*view["columnWidths"]]
    assert view["columnOrder"][-len(view["selectedColumns"]) :] == view["selectedColumns"]
    seen = view["columnOrder"][:6]
    assert seen[2:] == ["metrics.`core/L0`", "metrics.`core/FVU`", "metrics.`core/delta CE`", "params.`dictionary.top_k`"]
    assert sum(view["columnWidths"][name] for name in seen[:5]) <= 618  # at 1,280, MLflow's side panel beside it
    note = experiment.tags["mlflow.note.content"]
    assert "?viewStateShareKey=scopeline" in note
    first = first_of(note)
    assert "[table by L0]" in first
    assert first.endswith("; knee: k16")
    assert "orderBy" not in note  # such a link opens no view
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`core/L0`", True)
    assert "| a |" in note
    assert len(note) <= 5000
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "my own")
    with _open(params) as tracker:
        tracker.describe_experiment("| b |")
    assert client.get_experiment_by_name("scopeline").tags["mlflow.note.content"] == "my own"


def test_the_runs_are_compared_in_the_newest_one(tracked, client, params, monkeypatch):
    from pipeline.evaluation.compared_runs import log_comparison

    figures = {"l0_mean": 8.0, "fvu": 0.5, "delta_ce": 1.0, "dead_fraction": 0.0, "evaluated_tokens": 99.0}
    baseline = {"pca_fvu": 0.75, "pca_delta_ce": 2.0, "pca_rank": 8.0}
    for name, model, fvu in (("k8", "demo", 0.5), ("k9", "demo", 0.25), ("other", "gpt2", 0.1)):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        with _open(params) as tracker:
            tracker.log_params({"model": {"model_name": model, "revision": None}, "dictionary": {"top_k": 8, "act_fn": "topk"}})
            tracker.log_metrics({"tokens": 1000.0}, 3)
        with _open(params, "evaluate") as tracker:
            tracker.log_metrics({**figures, **baseline, "fvu": fvu})
            if name == "k9":
                log_comparison(tracker, [tracker.run_id])
                run_id = tracker.run_id
    rows = {row["Experiment"]: row for row in tracker.rows()}
    assert rows == {}  # closed
    run = client.get_run(run_id)
    assert run.data.tags["group"] == "1: dictionary, ?, 99 held-out tokens, demo"
    assert run.data.metrics["group 1/FVU"] == 0.25
    kept = tracked / "mlartifacts" / run_id / "artifacts"
    page = (kept / "comparison" / "index.html").read_text()
    assert "k8" in page
    assert "PCA" in page
    assert "gpt2" not in page
    assert {file.name for file in (kept / "comparison").glob("*.png")} == {"pareto_fvu.png", "pareto_delta_ce.png"}
    note = client.get_experiment_by_name("scopeline").tags["mlflow.note.content"]
    (row,) = [line for line in note.splitlines() if line.startswith("| k9 ")]
    assert [cell.strip() for cell in row.split("|")][5:10] == ["1,000", "8.0", "0.2500\\*", "-", "0.7500"]
    assert "0.5000 |" in next(line for line in note.splitlines() if line.startswith("| k8 "))
    assert "<li>L0: " in page  # each column has its line


def test_runs_on_the_same_documents_are_compared_by_these(tracked, client, params, monkeypatch):
    """Of the runs that are compared, this one among them; without its file a run of before has its interval alone."""
    from pipeline.evaluation.compared_runs import log_comparison
    from tests.plots.test_redrawn import runs

    asked = []
    artifact = MlflowTracker.artifact
    monkeypatch.setattr(MlflowTracker, "artifact", lambda *given: (asked.append(given[1]), artifact(*given))[1])
    ids = {}
    for e in runs({8.0: 1.0, 16.0: 0.4, 32.0: 0.3, 64.0: 0.2, 65.0: 0.1}, hard=2.0, own=0.01):
        other, (low, high) = e.l0 == 65, e.fvu_interval
        monkeypatch.setenv("DVC_EXP_NAME", "other" if other else e.name)
        with _open(params) as tracker:
            tracker.log_params({"model": {"model_name": "gpt2" if other else "demo"}, "dictionary": {"act_fn": "topk"}})
            ids[e.name] = tracker.run_id
        place = tracked / "plots"
        place.mkdir(exist_ok=True)
        (place / "documents.json").write_bytes(e.documents.documents.content())
        with _open(params, "evaluate") as tracker:
            figures = {"fvu": e.fvu, "fvu_low": low, "fvu_high": high, "delta_ce": e.delta_ce, "dead_fraction": 0.0}
            tracker.log_metrics({"l0_mean": e.l0, "evaluated_tokens": 99.0, **figures})
            tracker.log_artifact(place, "plots/evaluation")
    del ids["k65"]

    def compared() -> str:
        asked.clear()
        monkeypatch.setenv("DVC_EXP_NAME", "k64")
        with _open(params, "evaluate", ids={"mlflow": ids["k64"]}) as tracker:
            log_comparison(tracker, [tracker.run_id])
            assert tracker.artifact(ids["k8"], "plots/evaluation/none.json") is None
        return (tracked / "mlartifacts" / ids["k64"] / "artifacts/comparison/index.html").read_text()

    page = compared()
    assert "knee: k16, by delta CE and by FVU (in 100 % and 100 % of redraws)" in page
    assert sorted(asked[:-1]) == sorted(ids.values())
    note = client.get_experiment_by_name("scopeline").tags["mlflow.note.content"]
    assert "of redraws" in note
    assert first_of(note).endswith("; knee: k16, by delta CE and by FVU")  # short: MLflow cuts it
    (tracked / "mlartifacts" / ids["k8"] / "artifacts/plots/evaluation/documents.json").unlink()
    page = compared()
    assert "undecided between k8, k16 and k32 by FVU (95 % intervals overlap)" in page

    monkeypatch.setenv("DVC_EXP_NAME", "mlp")  # a run of another kind comes last: the knee of the others stays
    with _open(params) as tracker:
        tracker.log_params({"dictionary": {"kind": "transcoder", "hook_point_in": "blocks.1.hook_mlp_in"}})
        other = tracker.run_id
    with _open(params, "evaluate", ids={"mlflow": other}) as tracker:
        tracker.log_metrics({"l0_mean": 9.0, "fvu": 0.5, "delta_ce": 0.1, "dead_fraction": 0.0, "evaluated_tokens": 99.0})
        log_comparison(tracker, [other])
    note = client.get_experiment_by_name("scopeline").tags["mlflow.note.content"]
    assert "; dictionary knee: k16 by delta CE, undecided" in first_of(note)
    assert "mlp" in note
    assert "k32" in note


def test_each_group_of_runs_has_a_number_and_charts_of_its_own(tracked, client, params, monkeypatch):
    from pipeline.tracking.mlflow_pages import MAX_EXPERIMENT_TAG
    from pipeline.tracking.tracker import RunGroup

    ids = []
    for name in ("a", "b", "c", "d"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        with _open(params) as tracker:
            ids.append(tracker.run_id)
    a, b, c, d = ids

    def grouped(*groups: RunGroup) -> dict[str, object]:
        monkeypatch.setenv("DVC_EXP_NAME", "c")
        with _open(params, ids={"mlflow": c}) as tracker:  # which opens the view before, too
            tracker.group_runs(groups)
        return json.loads(client.get_experiment_by_name("scopeline").tags["mlflow.sharedViewState.scopeline"])

    def figures(fvu: float) -> dict[str, float]:
        return {"FVU": fvu, "delta CE": 2 * fvu}

    view = grouped(RunGroup("sae, x", {b: figures(0.5), a: figures(0.25)}))
    assert [section["name"] for section in view["compareRunSections"]] == ["group 1: sae, x", "all runs"]
    view = grouped(RunGroup("clt, y", {c: figures(0.125)}), RunGroup("sae, x", {b: figures(0.5), a: figures(0.25)}))
    assert [section["name"] for section in view["compareRunSections"]] == ["group 1: sae, x", "all runs"]  # nothing beside c
    clt = RunGroup("clt, y", {d: figures(0.375), c: figures(0.125)})
    view = grouped(clt, RunGroup("sae, x", {b: figures(0.5), a: figures(0.25)}))
    assert [section["name"] for section in view["compareRunSections"]] == ["group 2: clt, y", "group 1: sae, x", "all runs"]
    for run_id, number, fvu in ((a, 1, 0.25), (b, 1, 0.5), (c, 2, 0.125), (d, 2, 0.375)):
        data = client.get_run(run_id).data
        assert data.tags["group"].startswith(f"{number}: ")
        assert {key: value for key, value in data.metrics.items() if key.startswith("group")} == {
            f"group {number}/FVU": fvu, f"group {number}/delta CE": 2 * fvu
        }  # fmt: skip
    charts = view["compareRunCharts"]
    assert len({chart["uuid"] for chart in charts}) == len(charts)
    scatter = [chart for chart in charts if chart["type"] == "SCATTER"]
    assert {chart["xaxis"]["key"] for chart in scatter} == {"core/L0"}
    drawn = [(chart["metricSectionId"], chart["yaxis"]["key"]) for chart in scatter]
    assert drawn == [(f"group {n}", f"group {n}/{name}") for n in (2, 1) for name in ("FVU", "delta CE")]
    with _open(params, ids={"mlflow": c}):  # a stage that groups nothing keeps the charts
        pass
    tags = client.get_experiment_by_name("scopeline").tags
    assert json.loads(tags["mlflow.sharedViewState.scopeline"]) == view
    view = grouped(*[RunGroup(f"{i}" * 90, {}) for i in range(20)])
    assert len(client.get_experiment_by_name("scopeline").tags["mlflow.sharedViewState.scopeline"]) <= MAX_EXPERIMENT_TAG
    assert len(view["compareRunSections"]) > 3


def test_provenance_are_tags_only(tracked, client, params, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "brave-lynx")
    (tracked / "dvc.lock").write_text("a")
    with _open(params) as tracker:
        tracker.set_tags({"model_digest": "abc", "long": "x" * 9000})
    run = client.get_run(tracker.run_id)
    assert run.data.params == {}
    tags = run.data.tags
    assert tags["dvc_exp_name"] == "brave-lynx"
    assert tags["model_digest"] == "abc"
    assert len(tags["long"]) == 8000
    assert tags["long"].endswith("]")
    assert "version.torch" in tags
    (tracked / "dvc.lock").write_text("b")
    with _open(params, "evaluate") as tracker:
        pass
    changed = {key for key in client.get_run(tracker.run_id).data.tags if key.startswith("evaluate.")}
    assert changed == {"evaluate.dvc_lock_sha256"}


def test_long_params_are_shortened_and_many_are_split(tracked, client, params):
    many = {f"key{i:03d}": i for i in range(250)}
    with _open(params) as tracker:
        tracker.log_params({"many": many, "long": "y" * 7000, "tracking": {"enabled": True}})
        tracker.set_tags({f"tag{i:03d}": i for i in range(130)})
    run = client.get_run(tracker.run_id)
    assert {key: value for key, value in run.data.params.items() if key != "long"} == {
        f"many.key{i:03d}": str(i) for i in range(250)
    }
    long = run.data.params["long"]
    assert len(long) == 6000
    assert long.startswith("yyy")
    assert "[7000 characters, sha256 " in long
    assert run.data.tags["tag129"] == "129"


def test_params_cannot_change_and_a_changed_one_is_a_tag(tracked, client, params):
    with _open(params) as tracker:
        tracker.log_params({"evaluation": {"tokens": 100}, "same": "x"})
        tracker.log_params({"evaluation": {"tokens": 150}})
    with _open(params, "evaluate") as tracker:
        tracker.log_params({"evaluation": {"tokens": 200}, "same": "x", "new": 1})
        tracker.log_metrics({"fvu": 0.5})
    run = client.get_run(tracker.run_id)
    assert run.data.params == {"evaluation.tokens": "100", "same": "x", "new": "1"}
    assert run.data.tags["train.changed.evaluation.tokens"] == "150"
    assert run.data.tags["evaluate.changed.evaluation.tokens"] == "200"
    assert run.data.metrics == {"evaluation/fvu": 0.5}


def test_data_set_entry(tracked, client, params):
    with _open(params) as tracker:
        for _ in range(2):
            tracker.log_dataset("activations", "f" * 40, source={"fingerprint": "f" * 40}, shape=(1000, 128), dtype="bfloat16")
    with _open(params, "evaluate") as tracker:
        tracker.log_dataset("activations", "f" * 40, shape=(1000, 128), dtype="bfloat16", context="evaluation")
        tracker.log_dataset("tokens", "abc", context="evaluation")
    entries = client.get_run(tracker.run_id).inputs.dataset_inputs
    assert {(e.dataset.name, e.dataset.digest) for e in entries} == {("activations", "f" * 36), ("tokens", "abc")}
    train = next(e for e in entries if e.dataset.name == "activations")
    assert json.loads(train.dataset.source) == {"fingerprint": "f" * 40}
    assert "bfloat16" in train.dataset.schema
    assert "128" in train.dataset.schema
    assert next(tag.value for tag in train.tags) == "training"


def test_killed_and_resumed_has_every_step_once(tracked, client, params):
    (tracked / "h.jsonl").write_text("".join(json.dumps({"l0": float(step), "step": step}) + "\n" for step in range(1, 13)))
    killed = _open(params)
    run_id = killed.run_id
    for step in range(1, 9):
        killed.log_metrics({"l0": float(step)}, step)
    killed.flush()  # MLflow has steps 1 to 8
    for step in range(9, 13):
        killed.log_metrics({"l0": float(step)}, step)
    _kill(killed)  # 9 to 12 are in the history only
    assert client.get_run(run_id).info.status == "RUNNING"
    with _open(params, past="h.jsonl", ids={"mlflow": run_id}, resume_step=10) as tracker:
        for step in range(11, 16):
            tracker.log_metrics({"l0": float(step)}, step)
    assert tracker.run_id == run_id
    assert client.get_run(run_id).info.status == "RUNNING"
    assert _steps(client, run_id, "train/l0") == list(range(1, 16))


def test_resumed_from_before_what_was_flushed(tracked, client, params):
    killed = _open(params)
    for step in range(1, 9):
        killed.log_metrics({"l0": float(step), f"only{step % 2}": 1.0}, step)
    killed.flush()
    _kill(killed)
    with _open(params, ids={"mlflow": killed.run_id}) as tracker:
        for step in range(3, 11):
            tracker.log_metrics({"l0": float(step), f"only{step % 2}": 1.0}, step)
    assert _steps(client, tracker.run_id, "train/l0") == list(range(1, 11))
    assert _steps(client, tracker.run_id, "train/only0") == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("why", ["unknown", "malformed", "other experiment", "deleted"])
def test_a_run_that_cannot_go_on_is_continued_by_a_new_one(tracked, client, params, monkeypatch, why):
    (tracked / "past.jsonl").write_text("".join(json.dumps({"l0": 1.0, "step": step}) + "\n" for step in range(5)))
    old = "0" * 32 if why == "unknown" else "no run: 'quoted'" if why == "malformed" else None
    if old is None:
        started = _open(params)
        old = started.run_id
        _kill(started)
    if why == "deleted":
        client.delete_run(old)
    if why == "other experiment":
        monkeypatch.setenv("DVC_EXP_NAME", "brave-lynx")
    with _open(params, ids={"mlflow": old}, past="past.jsonl", resume_step=3) as tracker:
        for step in range(4, 7):
            tracker.log_metrics({"l0": 2.0}, step)
    run = client.get_run(tracker.run_id)
    assert run.info.run_id != old
    assert run.data.tags["continues"] == old
    assert json.loads((tracked / RUN_FILE).read_text()) == {"run_id": run.info.run_id}
    assert _steps(client, tracker.run_id, "train/l0") == list(range(7))
    if why == "other experiment":
        assert client.get_run(old).info.status == "KILLED"


def test_later_stages_of_another_experiment_share_one_new_run(tracked, client, params, monkeypatch):
    """As in `dvc exp run -S fold.feature_units=normalized`: train is not run again, data/run.json has the baseline's id."""
    for stage in ("train", "analyze"):
        with _open(params, stage) as tracker:
            pass
    baseline = tracker.run_id
    new = {}
    for name in ("brave-lynx", "calm-owl"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        for stage in ("fold", "evaluate"):
            with _open(params, stage) as tracker:
                tracker.log_metrics({"figure": 1.0})
            new.setdefault(name, set()).add(tracker.run_id)
    assert [len(ids) for ids in new.values()] == [1, 1]
    assert len({baseline}.union(*new.values())) == 3
    run = client.get_run(*new["calm-owl"])
    assert run.data.tags["continues"] == baseline
    assert run.info.run_name == "calm-owl"
    assert set(run.data.metrics) == {"fold/figure", "evaluation/figure"}
    assert client.get_run(baseline).info.status == "FINISHED"
    assert client.get_run(baseline).data.metrics == {}
    monkeypatch.delenv("DVC_EXP_NAME")
    with _open(params, "evaluate") as tracker:
        assert tracker.run_id == baseline


def test_without_a_run_file_a_stage_has_its_own_run(tracked, client, params):
    with _open(params, "evaluate") as tracker:
        tracker.log_metrics({"fvu": 0.5})
    run = client.get_run(tracker.run_id)
    assert run.info.run_name == "evaluate"
    assert "continues" not in run.data.tags
    assert not (tracked / RUN_FILE).exists()


def test_a_second_training_is_a_new_run(tracked, params):
    with _open(params) as first:
        pass
    with _open(params) as second:
        pass
    assert first.run_id != second.run_id


def test_logging_after_the_end_is_ignored(tracked, client, params):
    tracker = _open(params)
    tracker.close()
    tracker.close()
    tracker.log_metrics({"l0": 1.0}, 1)
    tracker.log_artifact("x")
    tracker.flush()
    run = client.get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics) == ("RUNNING", {})


def test_what_was_not_closed_is_written_at_exit(tracked, client, params):
    import sys
    from pathlib import Path

    code = """
from pipeline.params.sections.tracking import TrackingParams
from pipeline.tracking.opening import open_tracker
from tests.project import REPOSITORY
open_tracker(TrackingParams(), stage="train", run_file="data/run.json").log_metrics({"l0": 7.0}, 3)
"""
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=300, env={**__import__("os").environ, "PYTHONPATH": str(root)}
    )
    run = client.get_run(json.loads((tracked / RUN_FILE).read_text())["run_id"])
    assert (run.info.status, run.data.metrics) == ("FAILED", {"train/l0": 7.0})


def test_a_project_below_a_folder_with_quotes_and_colons_is_tracked(tmp_path, monkeypatch, capfd):
    place = tmp_path / 'it\'s "c:d" 5% a?b#e'
    place.mkdir()
    code = (
        "from pipeline.tracking.opening import open_tracker; from pipeline.params.schema import TrackingParams\n"
        "with open_tracker(TrackingParams(), stage='train', run_file='run.json') as tracker:\n"
        "    tracker.log_metrics({'a': 1.0}, 1); open('f.txt', 'w').write('hi'); tracker.log_artifact('f.txt', 'metrics')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads((place / "run.json").read_text())["run_id"]
    assert [path.read_text() for path in place.rglob("mlartifacts/**/f.txt")] == ["hi"]
