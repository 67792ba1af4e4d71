"""What MLflow shows first: names that sort before all others and that it accepts, and the description."""

from __future__ import annotations

import json

from pipeline.dictionaries.store import read_config
from pipeline.evaluation.headline import headline, note
from pipeline.metric_names import grouped


def test_the_headline_sorts_first_and_keeps_its_names(finished_project) -> None:
    metrics = json.loads((finished_project.path / "metrics" / "evaluation.json").read_text())
    names = headline(metrics)
    assert names["0 headline/FVU"] == metrics["fvu"]
    assert names["0 headline/delta cross entropy of PCA"] == metrics["pca_delta_ce"]
    others = [grouped("evaluate", name) for name in metrics]
    assert all(grouped("evaluate", name) == name for name in names)
    assert max(names) < min(others)
    assert names["0 headline/loss recovered against the mean"] == metrics["loss_recovered_mean"]


def test_the_note_has_the_dictionary_and_its_baselines(finished_project) -> None:
    metrics = json.loads((finished_project.path / "metrics" / "evaluation.json").read_text())
    config = read_config(finished_project.path / "data/inference/main").to_dict()
    text = note(config, {**metrics, "fvu": 0.125, "pca_fvu": 0.5, "zero_fvu": 1.75})
    assert text.startswith("**SAE main, topk 4, 64 features, blocks.0.hook_resid_post of model**")
    assert ", 3 x 64 features, " in note(config, metrics, layers=3)
    assert "| FVU | 0.125 (" in text
    assert "| 0.5 | 1 | 1.75 |" in text
    assert "| mean | zero |" in text
    assert "| loss recovered against the mean | " in text
