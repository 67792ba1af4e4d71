"""What MLflow shows first: names that sort before all others, figures of few digits, and the description."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.dictionaries.store import read_config
from pipeline.evaluation import results
from pipeline.evaluation.headline import headline, member_headlines, note
from pipeline.evaluation.massive import massive_line
from pipeline.metric_names import grouped, ordinary
from tests.messages import says


def test_the_headline_sorts_first_and_has_few_digits(finished_project) -> None:
    metrics = json.loads((finished_project.path / "metrics" / "evaluation.json").read_text())
    metrics |= {"fvu": 0.123456, "fvu_ordinary": 0.123456, "loss_recovered_mean": 0.99996, "delta_ce": 0.00012345}
    names = headline(metrics)
    assert (names["core/FVU"], names["core/loss recovered"], names["core/delta CE"]) == (0.1235, 1.0, 0.0001234)
    assert [name for name in names if "PCA" in name] == ["core/PCA FVU", "core/PCA delta CE"]
    assert all(grouped("evaluate", name) == name for name in names)
    assert max(names) < min(grouped("evaluate", name) for name in metrics)


def test_the_run_of_a_sweep_has_those_of_each_member(finished_project) -> None:
    metrics = json.loads((finished_project.path / "metrics" / "evaluation.json").read_text())
    found = member_headlines({"k8": metrics, "k16": metrics})
    assert {name.split("/")[0] for name in found} == {"k8", "k16"}
    assert found["k8/FVU"] == headline(metrics)["core/FVU"]


def test_the_note_has_the_dictionary_and_its_baselines(finished_project) -> None:
    metrics = json.loads((finished_project.path / "metrics" / "evaluation.json").read_text())
    config = read_config(finished_project.path / "data/inference/main").to_dict()
    text = note(config, {**metrics, "fvu_ordinary": 0.125, "pca_fvu_ordinary": 0.5, "zero_fvu_ordinary": 1.75})
    assert text.startswith("**SAE main, topk 4, 64 features, blocks.0.hook_resid_post of model**")
    assert ", 3 x 64 features, " in note(config, metrics, layers=3)
    assert "| FVU | 0.125 (" in text
    assert "| 0.5 | 1 | 1.75 |" in text
    assert "| mean | zero |" in text
    assert "| loss recovered against the mean | " in text
    assert "massive" not in text


def of_before(metrics: dict[str, float]) -> dict[str, float]:
    """An evaluation that has not told massive tokens."""
    return {
        name: value for name, value in metrics.items() if not any(part in name for part in ("ordinary", "massive", "excluded"))
    }


def test_massive_tokens_are_left_out_and_counted(finished_project) -> None:
    metrics = json.loads((finished_project.path / "metrics" / "evaluation.json").read_text())
    config = read_config(finished_project.path / "data/inference/main").to_dict()
    found = {
        "l0_mean_ordinary": 3.25, "fvu_ordinary": 0.375, "fvu_ordinary_low": 0.3125, "fvu_ordinary_high": 0.4375,
        "pca_fvu": 0.4375, "pca_fvu_ordinary": 0.625, "zero_fvu_ordinary": 1.875, "dead_fraction_ordinary": 0.0625,
        "evaluated_tokens": 50432.0, "massive_tokens": 12.0, "excluded_tokens": 12.0,
    }  # fmt: skip
    names = headline({**metrics, **found})
    assert (names["core/FVU"], names["core/PCA FVU"]) == (0.375, 0.625)  # both without massive tokens
    assert (names["core/L0"], names["core/dead share"]) == (3.25, 0.0625)
    text = note(config, {**metrics, **found})
    assert "L0 3.25, FVU 0.375 (PCA 0.625), delta CE " in text
    assert ", dead 6.25 %; on 50,432 held-out tokens of " in text
    few = note(config, {**metrics, **found, "evaluated_documents": 5.0, "evaluated_files": 5.0})
    assert "on 50,432 held-out tokens of 5 text files (95 % intervals are rough" in few
    many = note(config, {**metrics, **found, "evaluated_documents": 50.0, "evaluated_files": 0.0})
    assert "on 50,432 held-out tokens of 50 documents." in many
    said = massive_line({**metrics, **found}, config["norms"])
    assert said
    assert f"{said}. " in text
    rank = f"{metrics['pca_rank']:.0f}"
    assert f"PCA of rank {rank}" in text
    assert "| FVU | 0.375 (0.3125 to 0.4375) | 0.625 | 1 | 1.875 |" in text


def test_an_evaluation_of_before_shows_what_it_has(finished_project) -> None:
    metrics = of_before(json.loads((finished_project.path / "metrics" / "evaluation.json").read_text()))
    assert "fvu" in metrics
    config = read_config(finished_project.path / "data/inference/main").to_dict()
    metrics |= {"fvu": 0.125, "pca_fvu": 0.5, "zero_fvu": 1.75, "l0_mean": 7.5, "dead_fraction": 0.5}
    assert headline(metrics)["core/FVU"] == 0.125
    assert headline(metrics)["core/L0"] == 7.5
    text = note(config, metrics)
    assert "L0 7.5, FVU 0.125 (PCA 0.5), " in text
    assert "dead 50.00 %" in text
    assert "| FVU | 0.125 (" in text
    assert "| 0.5 | 1 | 1.75 |" in text
    assert "massive" not in text


def test_how_many_tokens_are_massive_in_words() -> None:
    metrics = {"evaluated_tokens": 50432.0, "massive_tokens": 12.0, "excluded_tokens": 12.0}
    norms = {"a": {"mean_norm": 1.0, "median_norm": 1.0, "max_norm_factor": 7.5}}
    says(massive_line(metrics, norms), "12 of 50,432", "(0.02 %)", "massive", "excluded", 7.5)
    says(massive_line(metrics, norms | {"b": norms["a"]}), "12 of 50,432", "(0.02 %)", "excluded", 7.5, "hook point")
    one = metrics | {"massive_tokens": 1.0, "excluded_tokens": 1.0}
    says(massive_line(one, norms), "1 of 50,432", "(under 0.01 %)", "excluded", 7.5)
    no_rule = {"a": {"mean_norm": 1.0, "median_norm": 1.0, "max_norm_factor": None}}
    says(massive_line(metrics | {"excluded_tokens": 0.0}, no_rule), "12 of 50,432", "(0.02 %)", 10, "no rule")
    assert massive_line(metrics | {"massive_tokens": 0.0}, norms) is None
    assert massive_line({"evaluated_tokens": 3.0}, None) is None


def test_the_key_of_what_is_shown_first() -> None:
    metrics = {"fvu": 0.5, "fvu_ordinary": 0.25, "fvu.blocks.1.hook_mlp_out": 0.5, "fvu_ordinary.blocks.1.hook_mlp_out": 0.125,
        "fvu.blocks.2.hook_mlp_out": 0.5, "l0_mean": 3.0, "l0_mean_ordinary": None}  # fmt: skip
    assert ordinary(metrics, "fvu") == "fvu_ordinary"
    assert ordinary(metrics, "fvu.blocks.1.hook_mlp_out") == "fvu_ordinary.blocks.1.hook_mlp_out"
    assert ordinary(metrics, "fvu.blocks.2.hook_mlp_out") == "fvu.blocks.2.hook_mlp_out"
    assert ordinary(metrics, "l0_mean") == "l0_mean"
    assert ordinary(metrics, "kl") == "kl"


def test_what_is_true_of_all_members_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluation(excluded: float) -> Any:
        metrics = {"evaluated_tokens": 1000.0, "massive_tokens": excluded, "excluded_tokens": excluded}
        return SimpleNamespace(metrics=metrics, said="")

    norms = {"a": {"mean_norm": 1.0, "max_norm_factor": 10.0, "median_norm": 2.0}}
    monkeypatch.setattr(results, "read_config", lambda place: SimpleNamespace(norms=norms))
    places = {name: Path(name) for name in ("k8", "k16", "mlp")}
    (line,) = results.notices({"k8": evaluation(4.0), "k16": evaluation(4.0)}, places)
    says(line, "4 of 1,000", "massive")
    assert "k8" not in line
    lines = results.notices({"k8": evaluation(4.0), "k16": evaluation(4.0), "mlp": evaluation(7.0)}, places)
    assert [each.partition(": ")[0] for each in lines] == ["k8, k16", "mlp"]
    says(lines[1], "7 of 1,000")
