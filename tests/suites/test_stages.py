"""sparse_probing and ground_truth through their stages, on the small project, with what they log."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.metric_names import GROUND_TRUTH, SPARSE_PROBING
from tests.messages import says
from tests.project import Project


def labelled(project: Project, n: int = 60) -> str:
    """Two kinds of text by their words."""
    draw = np.random.default_rng(1)
    words = {"animals": ["cat", "dog", "the", "and"], "places": ["mat", "home", "the", "far"]}
    rows = [{"text": " ".join(draw.choice(words[label], 14)), "label": label} for _ in range(n) for label in words]
    (project.path / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "labelled.jsonl"


def test_sparse_probing(project: Project) -> None:
    outcome = project.run("sparse_probing", "--texts", labelled(project), "--contexts", "1")
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    found = json.loads((project.path / "metrics" / "sparse_probing.json").read_text())
    assert (found["label_names"], found["labels"], found["texts"]) == (["animals", "places"], 2.0, 120.0)
    assert found["train_examples"] + found["test_examples"] == 120
    assert 15 <= found["test_examples"] <= 45
    assert found["dense_accuracy"] > 0.9  # the words differ
    assert found["accuracy_k5"] > 0.7
    for name in found:
        stem = name.partition(".")[0].replace("_k2", "_k1").replace("_k5", "_k1")
        assert stem in SPARSE_PROBING or name in ("task", "label_names", "k", "seed"), name
    again = project.run("sparse_probing", "--texts", "labelled.jsonl", "--contexts", "1", "--out", "metrics/again.json")
    assert again.exit_code == 0
    assert json.loads((project.path / "metrics" / "again.json").read_text()) == found


def test_the_texts_are_refused_by_name(project: Project) -> None:
    outcome = project.run("sparse_probing", "--texts", "none.jsonl")
    assert outcome.exit_code == 2
    says(outcome.stderr, "none.jsonl", "missing")
    outcome = project.run("sparse_probing", "--texts", labelled(project), "--data-set", "other")
    assert outcome.exit_code == 2
    says(outcome.stderr, "--texts", "--data-set", "both")
    outcome = project.run("sparse_probing", "--texts", labelled(project, 4))
    assert outcome.exit_code == 2
    says(outcome.stderr, "two labels", "'animals'")


def test_ground_truth(project: Project) -> None:
    arguments = ("--width", "12", "--features", "24", "--active", "3", "--tokens", "4096")
    outcome = project.run("ground_truth", *arguments)
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    found = json.loads((project.path / "metrics" / "ground_truth.json").read_text())
    about = found.pop("set")
    assert set(found) == set(GROUND_TRUTH)
    assert (about["width"], about["features"], about["roots"]) == (12.0, 24.0, 6.0)
    assert found["l0_mean"] == pytest.approx(4.0, abs=0.05)  # dictionary.top_k
    assert found["true_l0"] == pytest.approx(3.0, abs=0.1)
    assert found["explained_variance"] == pytest.approx(1 - found["fvu"])
    outcome = project.run("ground_truth", *arguments[:-3], "90", "--tokens", "4096")
    assert outcome.exit_code == 2
    says(outcome.stderr, "90 active features of 24")


def test_figures_are_logged_to_the_run(project: Project) -> None:
    from mlflow.tracking import MlflowClient

    project.set(tracking__enabled=True)
    uri = f"sqlite:///{project.path / 'mlflow.db'}"
    project.set(tracking__tracking_uri=uri)
    outcome = project.run("ground_truth", "--width", "12", "--features", "24", "--active", "3", "--tokens", "1024")
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    client = MlflowClient(tracking_uri=uri)
    (experiment,) = [each for each in client.search_experiments() if each.name == "scopeline"]
    (run,) = client.search_runs([experiment.experiment_id])
    found = json.loads((project.path / "metrics" / "ground_truth.json").read_text())
    assert run.data.metrics["ground_truth/mcc"] == pytest.approx(found["mcc"])
    assert run.data.tags["ground_truth.features"] == "24.0"
