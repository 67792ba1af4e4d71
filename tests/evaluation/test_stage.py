"""The evaluate stage in a small project."""

from __future__ import annotations

import hashlib
import json
import math
import shutil

import pytest
from safetensors.torch import load_file, save_file

from tests.messages import says
from tests.sealing import rewritten

SPEC_KEYS = {
    "fvu", "explained_variance", "l0_mean", "dead_fraction", "dense_fraction", "ce_original", "ce_spliced", "ce_zero",
    "ce_mean", "delta_ce", "loss_recovered_zero", "loss_recovered_mean", "kl", "pca_fvu", "pca_delta_ce", "pca_rank",
    "explained_variance_legacy", "mse", "nmse", "cosine_similarity", "l2_ratio", "relative_reconstruction_bias",
}  # fmt: skip


def of_documents(project) -> dict[str, float]:
    """What the sums of each document add up to."""
    file = json.loads((project.path / "metrics/plots/evaluation/documents.json").read_text())
    return {name: sum(each["numerators"]) / sum(each["denominators"]) for name, each in file["sums"].items()}


def test_metrics_are_flat_finite_and_without_times(finished_project):
    text = (finished_project.path / "metrics" / "evaluation.json").read_text()
    metrics = json.loads(text)
    assert metrics.keys() >= SPEC_KEYS
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    assert not any("second" in name or "time" in name for name in metrics)
    assert metrics["l0_mean"] == pytest.approx(4.0, abs=0.01)
    assert metrics["pca_rank"] == 4
    assert 0 < metrics["fvu"] < 1
    assert metrics["explained_variance"] == 1 - metrics["fvu"]
    assert metrics["delta_ce"] == metrics["ce_spliced"] - metrics["ce_original"]


def test_plots_and_densities_are_written(finished_project):
    folder = finished_project.path / "metrics" / "plots" / "evaluation"
    metrics = json.loads((finished_project.path / "metrics" / "evaluation.json").read_text())
    tensors = load_file(folder / "feature_density.safetensors")
    assert float(tensors["density"].sum()) == pytest.approx(metrics["l0_mean"])
    assert int((tensors["density"] == 0).sum()) == metrics["dead_features"]
    never, *bins = json.loads((folder / "feature_density.json").read_text())
    assert never == {"log10_density": None, "features": metrics["dead_features"]}
    assert sum(row["features"] for row in bins) + metrics["dead_features"] == len(tensors["density"])
    assert of_documents(finished_project) == pytest.approx({name: metrics[name] for name in ("fvu_ordinary", "delta_ce")})
    file = json.loads((folder / "documents.json").read_text())
    sizes = {len(values) for each in file["sums"].values() for values in each.values()}
    assert sizes == {metrics["evaluated_documents"]}
    assert sum(file["sums"]["delta_ce"]["denominators"]) == metrics["predicted_tokens"]
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {"feature_density.png", "activation_norm.png"}
    page = (folder / "index.html").read_text()
    assert "<svg" in page
    assert "pca_delta_ce" in page


def test_run_again_it_writes_the_same_bytes(project):
    def written() -> dict[str, bytes]:
        folder = project.path / "metrics"
        places = [folder / "evaluation.json", *sorted((folder / "plots" / "evaluation").rglob("*"))]
        return {place.name: place.read_bytes() for place in places if place.is_file()}

    before = written()
    assert len(before) > 1
    outcome = project.run("evaluate")
    assert (outcome.exit_code, outcome.exception) == (0, None)
    assert written() == before


def test_excluded_tokens_are_said(project):
    """The limit of the dictionary's configuration put where some of the tokens are above it."""
    norms = json.loads((project.path / "data" / "norms.json").read_text())["hook_points"]
    file = project.path / "data" / "inference" / "main" / "config.json"

    def lowered(config):
        ((hook, norm),) = config["norms"].items()
        norm["median_norm"] = norms[hook]["norm_quantiles"]["0.5"] / 8.5

    rewritten(file, lowered)
    before = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    outcome = project.run("evaluate")
    assert (outcome.exit_code, outcome.exception) == (0, None)
    metrics = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    n, total = (int(metrics[name]) for name in ("excluded_tokens", "evaluated_tokens"))
    assert 0 < n < total / 4
    (line,) = [line for line in outcome.stderr.splitlines() if "massive" in line]
    says(line, f"{n:,} of {total:,}", f"({100 * n / total:.2f} %)", "massive", "excluded", 10)
    page = (project.path / "metrics/plots/evaluation/index.html").read_text()
    assert f"{line}. " in page
    assert metrics["fvu"] == pytest.approx(before["fvu"], rel=1e-9)
    assert metrics["fvu_ordinary"] != metrics["fvu"]
    assert of_documents(project) == pytest.approx({name: metrics[name] for name in ("fvu_ordinary", "delta_ce")})
    assert metrics["ce_zero"] < before["ce_zero"]  # fewer activations are replaced
    assert metrics["ce_original"] == before["ce_original"]
    histogram = json.loads((project.path / "metrics/plots/evaluation/feature_density.json").read_text())
    never, n_features = histogram[0]["features"], sum(row["features"] for row in histogram)
    assert never / n_features == metrics["dead_fraction_ordinary"]


def test_what_is_no_set_for_all_mlps_is_said(project):
    """Nothing else is changed by asking for it."""
    before = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    outcome = project.set(evaluation__replacement_contexts=2).run("evaluate")
    assert (outcome.exit_code, outcome.exception) == (0, None)
    says(outcome.stderr, "evaluation.replacement_contexts", "blocks.0.hook_mlp_out", "one transcoder for each layer's", "clt")
    assert json.loads((project.path / "metrics" / "evaluation.json").read_text()) == before


def test_a_dictionary_with_its_run_time_norm_is_evaluated_in_raw_space(project):
    folded = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    project.set(fold__mode="keep")
    for stage in ("fold_norm", "evaluate"):
        outcome = project.run(stage)
        assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    kept = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    for name in ("fvu", "mse", "l0_mean", "ce_spliced", "ce_zero", "kl", "pca_fvu", "decoder_max_cosine_q50"):
        assert kept[name] == pytest.approx(folded[name], rel=1e-3, abs=1e-5), name


def test_faults_are_one_line_and_exit_code_2(project):
    def fails(*useful: str) -> None:
        outcome = project.run("evaluate")
        assert outcome.exception is None
        assert outcome.exit_code == 2
        (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
        assert all(part in line for part in useful), line

    project.set(evaluation__tokens=10**9)
    fails("evaluation.tokens asks for 1,000,000,000 held-out tokens", "dataset.eval_fraction")
    project.set(evaluation__tokens=None)
    statistics = project.path / "data" / "norm_statistics.safetensors"
    tensors = load_file(statistics)
    save_file({name: tensor for name, tensor in tensors.items() if not name.endswith("/mean")}, statistics)
    fails("norm_statistics.safetensors:", "norms.json", "dvc repro -s -f norm")
    digest = hashlib.sha256(statistics.read_bytes()).hexdigest()
    rewritten(project.path / "data" / "norms.json", lambda norms: norms.update(statistics=digest))
    fails("norm_statistics.safetensors: no statistics of blocks.0.hook_resid_post", "dvc repro -s -f norm")
    statistics.unlink()
    fails("norm_statistics.safetensors:", "missing", "dvc repro -s -f norm")
    shutil.rmtree(project.path / "data" / "inference")
    fails("data/inference/main")
