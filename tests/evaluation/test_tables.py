"""Every metric is defined and on the page, once; baselines stand beside the numbers that have them."""

from __future__ import annotations

import json
from html import escape

import pytest

from pipeline.dictionaries.build import build_dictionary
from pipeline.evaluation.compared import compared
from pipeline.evaluation.decoder import decoder_metrics
from pipeline.evaluation.sparsity import QUANTILES, quantile_key
from pipeline.evaluation.tables import compared_table, metric_tables
from pipeline.metric_names import DEFINITIONS, MetricKey, read_key
from pipeline.plots.charts import number
from pipeline.plots.page import Row
from tests.messages import says

EARLY, LATE, OTHER = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "tuned:blocks.1.hook_resid_post"


@pytest.fixture
def metrics(finished_project) -> dict[str, float]:
    return json.loads((finished_project.path / "metrics" / "evaluation.json").read_text())


def test_a_key_is_taken_apart() -> None:
    assert read_key("fvu") == MetricKey("fvu", "", "")
    assert read_key(f"l0_q05.{EARLY}") == MetricKey("l0", "q05", EARLY)
    assert read_key("delta_ce_high.tuned") == MetricKey("delta_ce", "high", "tuned")
    assert read_key("features_above_1e-1") == MetricKey("features_above_1e-1", "", "")
    assert read_key("saebench/l0") == MetricKey("saebench/l0", "", "")
    assert read_key("unheard_of") is None


def test_every_metric_is_defined_and_on_the_page(finished_project, metrics: dict[str, float]) -> None:
    text = (finished_project.path / "metrics/plots/evaluation/index.html").read_text()
    for key, value in metrics.items():
        found = read_key(key)
        assert found is not None, key
        assert f"<th>{found.name}<small>{escape(DEFINITIONS[found.name])}</small></th>" in text, key
        assert number(value) in text, key
    assert "Others" not in text


def test_each_place_has_its_column(metrics: dict[str, float]) -> None:
    """A crosscoder over layers and checkpoints: hook points, models and pairs."""
    hooks = [EARLY, LATE, OTHER]
    config = {"kind": "crosscoder", "d_in": 8, "d_sae": 24, "hook_points_in": hooks, "act_fn": "topk", "top_k": 3}
    own = decoder_metrics(build_dictionary(config, seed=0))
    for place, hook in enumerate(hooks):
        own |= {f"fvu.{hook}": 0.25 + place, f"fvu_low.{hook}": 0.125 + place, f"fvu_high.{hook}": 0.375 + place}
    own |= {"kl.tuned": 0.0625}
    tables = {table.title: table for table in metric_tables({**metrics, **own}, hooks, hooks)}
    assert "Others" not in tables
    written = tables["At each written hook point"]
    assert written.columns == ("all", *hooks)
    (fvu,) = [row for row in written.rows if row.name == "fvu"]
    assert fvu.cells[1:] == ("0.25 (0.125 to 0.375)", "1.25 (1.125 to 1.375)", "2.25 (2.125 to 2.375)")
    (models,) = tables["In the further models"].rows
    assert models == Row("kl", DEFINITIONS["kl"], (metrics["kl"], 0.0625))
    pairs = tables["Cosine similarity between hook points"]
    assert [row.name for row in pairs.rows] == [f"{EARLY}.{LATE}", f"{EARLY}.{OTHER}", f"{LATE}.{OTHER}"]
    assert pairs.rows[0].cells == tuple(own[f"{quantile_key('written_cosine', q)}.{EARLY}.{LATE}"] for q in QUANTILES)
    shown = [cell for table in tables.values() for row in table.rows for cell in row.cells]
    for key, value in own.items():
        if read_key(key) and not read_key(key).part.startswith(("low", "high")) and not key.startswith("fvu"):
            assert value in shown, key


def test_layers_that_are_read_only_have_a_table_of_their_own(metrics: dict[str, float]) -> None:
    reads, writes = ["blocks.0.ln2.hook_out"], [EARLY]
    tables = metric_tables({**metrics, f"l0_mean.{reads[0]}": 3.5, f"l0_q50.{reads[0]}": 3.0}, reads, writes)
    (layers,) = [table for table in tables if table.title == "At each layer of features"]
    assert [(row.name, row.cells) for row in layers.rows] == [
        ("l0_mean", (metrics["l0_mean"], 3.5)), ("l0, 50 %", (metrics["l0_q50"], 3.0)),
    ]  # fmt: skip


def test_figures_with_massive_tokens_say_so_and_stand_after_those_without_beside_their_own_baselines(
    metrics: dict[str, float],
) -> None:
    assert not metrics["massive_tokens"]
    hook = "blocks.0.hook_resid_post"
    plain = metric_tables(metrics, [hook], [hook])
    assert not any("massive" in table.title for table in plain)
    tables = metric_tables(
        {**metrics, "massive_tokens": 4.0, "fvu": 0.75, f"fvu.{hook}": 0.7, f"fvu_ordinary.{hook}": 0.1}, [hook], [hook]
    )
    titles = [table.title for table in tables]
    assert titles[0] == "Without massive tokens"
    assert [row.name for row in tables[0].rows][:2] == ["fvu_ordinary", "explained_variance_ordinary"]
    assert {"pca_fvu_ordinary", "l0_mean_ordinary", "dead_fraction_ordinary"} < {row.name for row in tables[0].rows}
    assert titles[1] == "Reconstruction: all tokens, massive ones included"
    assert [(row.name, row.cells) for row in tables[1].rows[1:3]] == [
        ("pca_fvu", (metrics["pca_fvu"],)), ("zero_fvu", (metrics["zero_fvu"],)),
    ]  # fmt: skip
    assert {"mse", "l2_norm_in"} < {row.name for row in tables[1].rows}
    assert "Sparsity: all tokens, massive ones included" in titles
    assert "Language model" in titles  # a massive token keeps its own activation there
    (at_hook,) = [table for table in tables if table.title == "At each written hook point"]
    assert [row.name for row in at_hook.rows] == ["fvu_ordinary", "fvu"]
    grouped = {name for table in (plain, tables) for group in table for name in [row.name for row in group.rows]}
    assert grouped == {row.name for table in plain for row in table.rows}  # none is lost
    assert sorted(row.name for table in plain for row in table.rows if not table.title.startswith("At ")) == sorted(
        row.name for table in tables for row in table.rows if not table.title.startswith("At ")
    )


def test_baselines_by_hand() -> None:
    metrics = {
        "fvu": 0.1, "fvu_low": 0.05, "fvu_high": 0.2, "pca_fvu": 0.4, "zero_fvu": 1.5, "pca_rank": 24.0,
        "ce_original": 3.0, "ce_mean": 7.0, "ce_zero": 11.0, "delta_ce": 0.5, "pca_delta_ce": 2.0,
        "loss_recovered_mean": 3.5 / 4, "loss_recovered_zero": 7.5 / 8, "kl": 0.25, "kl_zero": 9.0,
    }  # fmt: skip
    assert [tuple(row[2:]) for row in compared(metrics)] == [
        (0.1, (0.05, 0.2), 0.4, 1.0, 1.5),
        (0.5, None, 2.0, 4.0, 8.0),
        (0.875, None, 0.5, 0.0, -1.0),
        (0.9375, None, 0.75, 0.5, 0.0),
        (0.25, None, None, None, 9.0),
    ]
    apart = {"fvu_ordinary": 0.2, "pca_fvu_ordinary": 0.6, "zero_fvu_ordinary": 1.25}
    assert compared({**metrics, **apart})[0][2:] == (0.2, None, 0.6, 1.0, 1.25)
    assert compared({**metrics, **apart})[1:] == compared(metrics)[1:]
    says(compared_table(metrics, "3 of 9 tokens are massive").note, "3 of 9 tokens are massive. FVU")
    table = compared_table(metrics)
    assert table.columns == ("this dictionary (95 %)", "PCA of rank 24", "mean", "zero")
    assert table.rows[0].cells == ("0.1 (0.05 to 0.2)", 0.4, 1.0, 1.5)
