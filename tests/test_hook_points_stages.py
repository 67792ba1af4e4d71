"""Dictionaries inside attention and MLP, and at modules by their path, through every stage on a small project."""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.analysis.feature_tables import FeatureStore
from pipeline.dictionaries.store import load_dictionary
from pipeline.opening import open_activations
from tests.messages import says
from tests.project import D_MODEL, make_project
from tests.test_crosscoder_stages import make_checkpoint

NEURONS = 32
HEADS, POST, MLP_OUT = "blocks.1.attn.hook_z", "blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out"
DOWN = "module:gpt_neox.layers.1.mlp.dense_4h_to_h:input"
TRANSCODER = {
    "dictionary__kind": "transcoder",
    "dictionary__apply_b_dec_to_input": False,
    "dictionary__hook_point_in": DOWN,
    "dictionary__hook_point_out": MLP_OUT,
}
LIVE = {
    "activations__source": "live",
    "trainer__model_loss": "kl",
    "trainer__model_loss_steps": 2,
    "trainer__model_loss_batches": 1,
}
CASES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "heads": ({"dictionary__hook_point_in": HEADS}, {HEADS: D_MODEL}),
    "neurons": ({"dictionary__hook_point_in": POST}, {POST: NEURONS}),
    "neurons_live": ({"dictionary__hook_point_in": POST, **LIVE}, {POST: NEURONS}),
    "embedding": ({"dictionary__hook_point_in": "hook_embed"}, {"hook_embed": D_MODEL}),
    "transcoder_of_a_module": (TRANSCODER, {DOWN: NEURONS, MLP_OUT: D_MODEL}),
}


@pytest.mark.parametrize("case", CASES)
def test_stages_run_to_the_end(case: str, tmp_path: Path) -> None:
    changes, widths = CASES[case]
    project = make_project(tmp_path / "project").set(**changes).run_all()
    metrics = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    assert metrics["fvu"] < 1.0
    assert metrics["ce_zero"] != metrics["ce_original"]
    made = load_dictionary(project.path / "data/inference/main")
    found = list(widths.values())
    assert (made.config.d_in, made.config.d_out) == (found[0], found[-1])
    with chdir(project.path):
        store = open_activations("data/activations.json")
    assert {hook: store.width(hook) for hook in store.hook_points} == widths
    # Only what is added to the residual stream has logits.
    promoted = [row["promoted"] for row in FeatureStore(project.path / "data/features").features(["promoted"])]
    assert {each is not None for each in promoted} == {MLP_OUT in widths}


def test_the_store_has_what_plain_hooks_read(tmp_path: Path) -> None:
    from transformers import GPTNeoXForCausalLM

    project = make_project(tmp_path / "project").set(**TRANSCODER, activations__storage_dtype="float32")
    project.run_all(until="generate_activations")
    store = open_activations(project.store)
    model = GPTNeoXForCausalLM.from_pretrained(project.path / "model", dtype=torch.float32)
    rows = store.read(DOWN, 0, 64)
    out = model.gpt_neox.layers[1].mlp.dense_4h_to_h(rows)
    torch.testing.assert_close(store.read(MLP_OUT, 0, 64), out.detach(), rtol=1e-5, atol=1e-6)


def test_a_module_of_another_model(tmp_path: Path) -> None:
    """A crosscoder of two checkpoints: a block's output by its name in one, by its module in the other."""
    project = make_project(tmp_path / "project")
    make_checkpoint(project.path / "model", project.path / "tuned")
    hooks = ["blocks.0.hook_resid_post", "tuned:module:gpt_neox.layers.0:output"]
    project.set(
        models={"tuned": {"model_name": "tuned", "revision": None}},
        dictionary__kind="crosscoder",
        dictionary__hook_point_in=None,
        dictionary__hook_points_in=hooks,
        dictionary__apply_b_dec_to_input=False,
    ).run_all()
    metrics = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    assert {"delta_ce", "delta_ce.tuned"} <= metrics.keys()
    assert metrics["ce_zero.tuned"] != metrics["ce_original.tuned"]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"dictionary__hook_point_in": "blocks.1.hook_resid_mid"}, ("blocks.1.hook_resid_mid", "gpt_neox", "parallel")),
        ({"dictionary__hook_point_in": "blocks.1.mlp.hook_pre_linear"}, ("blocks.1.mlp.hook_pre_linear", "has no")),
        (
            {"dictionary__hook_point_in": "module:gpt_neox.layers.1.mlp.dense_4h_to:input"},
            ("no module", "'module:gpt_neox.layers.1.mlp.dense_4h_to_h:input'"),
        ),
        ({"dictionary__hook_point_in": "module:gpt_neox.embed_in:input"}, ("wanted an activation", "torch.int64")),
    ],
)
def test_what_a_model_lacks_is_refused_before_anything_is_computed(
    changes: dict[str, Any], parts: tuple[str, ...], tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project").set(**changes)
    outcome = project.run("inputs")
    assert (outcome.exit_code, outcome.exception) == (2, None)
    assert len(outcome.stderr.splitlines()) == 1
    says(outcome.stderr, *parts)
    assert not list((project.path / "data").glob("store/*"))


def test_what_is_written_too_early_is_refused(tmp_path: Path) -> None:
    written = "module:gpt_neox.layers.1.mlp.dense_h_to_4h:output"
    project = make_project(tmp_path / "project").set(**{**TRANSCODER, "dictionary__hook_point_out": written})
    outcome = project.run("inputs")
    assert (outcome.exit_code, outcome.exception) == (2, None)
    says(outcome.stderr, f"{written} occurs before {DOWN}", "later")
