"""Every language-model family through the stages: a tiny random model of each generates, trains and is evaluated.

The matrix job: one process, a few seconds of CPU a family. Five families also run to the dashboard, with an SAE and a
transcoder, and one a cross-layer transcoder.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.analysis.feature_tables import FeatureStore
from pipeline.opening import open_activations
from tests.lm.conftest import CONFIGURATIONS
from tests.lm.families import VOCAB, write_model
from tests.messages import says
from tests.project import Project, make_project

RESIDUAL = "blocks.1.hook_resid_post"
TINY: dict[str, Any] = {
    "activations__total_tokens": 1024,
    "activations__model_batch_size": 1,
    "activations__storage_dtype": "float32",
    "activations__target": "activations-2d",
    "activations__batch_size": 8,  # contexts
    "dictionary__hook_point_in": RESIDUAL,
    "trainer__total_training_tokens": 1024,
    "trainer__log_frequency": 4,
    "initializer__tokens": 256,
}
WHOLE = ("gemma2", "gemma3", "qwen3_moe", "gpt_oss", "olmo2")
# What the MLP of a layer reads, in a family without a norm before it.
READS = {"olmo2": "blocks.1.mlp.hook_in"}
TRANSCODER: dict[str, Any] = {
    "dictionary__kind": "transcoder",
    "dictionary__apply_b_dec_to_input": False,
    "initializer__initialize_tc_with_mlp": True,
    "initializer__initialize_W_D_with_activations": False,
    "initializer__initialize_W_D_with_active_subspace": False,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with text and parameters."""
    return make_project(tmp_path_factory.mktemp("families") / "project").set(**TINY)


@pytest.fixture
def of_family(base: Project, tmp_path: Path) -> Callable[[str], Project]:
    """name -> a copy of that project with a model of the family."""
    return lambda name: _with_model(base.copy(tmp_path / name), name)


def _with_model(project: Project, name: str, **changes: Any) -> Project:
    shutil.rmtree(project.path / "model")
    model_type, options = CONFIGURATIONS[name]
    write_model(project.path / "model", model_type, {**options, **changes})
    return project


def residual_streams(directory: Path, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of plain transformers, a context at a time as the pipeline is told to: the inputs of all blocks."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        runs = [model(input_ids=one, use_cache=False, output_hidden_states=True).hidden_states for one in tokens.split(1)]
    return tuple(torch.cat(layer) for layer in zip(*runs, strict=True))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_family_generates_and_is_evaluated(name: str, of_family: Callable[[str], Project]) -> None:
    project = of_family(name)
    project.run_all(until="evaluate")
    store = open_activations(project.store)
    tokens = store.read_rows_meta(0, 8).tokens.long()
    plain = residual_streams(project.path / "model", tokens)
    assert torch.equal(store.read(RESIDUAL, 0, 8), plain[2])  # bit for bit
    metrics = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    assert all(math.isfinite(metrics[key]) for key in ("fvu", "ce_original", "ce_spliced", "ce_zero"))
    assert 0.0 < metrics["fvu"] < 1.0
    assert metrics["ce_zero"] != metrics["ce_original"] != metrics["ce_spliced"]


@pytest.mark.parametrize("kind", ["sae", "transcoder"])
@pytest.mark.parametrize("name", WHOLE)
def test_families_run_to_the_dashboard(name: str, kind: str, of_family: Callable[[str], Project]) -> None:
    project = of_family(name)
    if kind == "transcoder":
        reads = READS.get(name, "blocks.1.ln2.hook_out")
        project.set(**TRANSCODER, dictionary__hook_point_in=reads, dictionary__hook_point_out="blocks.1.hook_mlp_out")
    project.run_all()
    assert (project.path / "data" / "dashboard" / "index.html").stat().st_size > 10_000
    rows = FeatureStore(project.path / "data" / "features").features(["promoted"])
    assert all(row["promoted"] for row in rows)


def test_a_cross_layer_transcoder_of_a_family_with_norms_after_its_parts(of_family: Callable[[str], Project]) -> None:
    project = of_family("gemma2").set(
        dictionary__kind="clt",
        dictionary__apply_b_dec_to_input=False,
        dictionary__hook_point_in=None,
        dictionary__hook_points_in=[f"blocks.{layer}.ln2.hook_out" for layer in range(3)],
        dictionary__hook_points_out=[f"blocks.{layer}.hook_mlp_out" for layer in range(3)],
    )
    project.run_all()
    metrics = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    assert math.isfinite(metrics["fvu"])
    assert metrics["ce_zero"] != metrics["ce_original"]
    assert (project.path / "data" / "dashboard" / "index.html").is_file()


LORSA: dict[str, Any] = {
    "dictionary__kind": "lorsa",
    "dictionary__apply_b_dec_to_input": False,
    "dictionary__hook_point_in": "blocks.1.ln1.hook_out",
    "dictionary__hook_point_out": "blocks.1.hook_attn_out",
    "dictionary__n_qk_heads": 4,
    "dictionary__d_qk_head": 8,
    "dictionary__n_ctx": 16,
    "dictionary__rotary_dim": 8,
    "dictionary__rotary_adjacent_pairs": False,
    "initializer__initialize_lorsa_with_mhsa": True,
    "initializer__initialize_W_D_with_activations": False,
    "initializer__initialize_W_D_with_active_subspace": False,
}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("gemma2", ("gemma2", "a norm stands between")),
        ("gemma3", ("gemma3_text", "a norm stands between")),
        ("gpt_oss", ("gpt_oss", "sinks")),
        ("olmo2", ("olmo2", "no ln1.hook_out")),
    ],
)
def test_an_attention_that_cannot_be_taken_over_is_refused_before_generating(
    name: str, parts: tuple[str, ...], of_family: Callable[[str], Project]
) -> None:
    project = of_family(name).set(**LORSA)
    outcome = project.run("generate_activations")
    assert (outcome.exit_code, outcome.exception) == (2, None)
    assert len(outcome.stderr.splitlines()) == 1
    says(outcome.stderr, *parts)
    assert not list((project.path / "data").glob("store/*"))


def test_low_rank_attention_of_a_mixture_of_experts(of_family: Callable[[str], Project]) -> None:
    norm = {"dictionary__use_post_qk_ln": True, "dictionary__normalization_type": "RMS", "dictionary__eps": 1e-3}
    project = of_family("qwen3_moe").set(**LORSA, **norm)
    project.run_all()
    metrics = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    assert math.isfinite(metrics["fvu"])


def test_a_vocabulary_larger_than_the_tokenizers(base: Project, tmp_path: Path) -> None:
    """Tokens that no text has are suppressed or promoted by name all the same."""
    project = _with_model(base.copy(tmp_path / "larger"), "gemma3", vocab_size=VOCAB + 20)
    project.run_all()
    rows = FeatureStore(project.path / "data" / "features").features(["promoted", "suppressed"])
    named = {token["token"] for row in rows for part in ("promoted", "suppressed") for token in row[part]}
    assert max(named) >= VOCAB


def test_a_family_that_only_transformer_lens_knows(base: Project, tmp_path: Path) -> None:
    """Neurons by the bridge's own name, and an SAE of the residual stream, whose features have logits."""
    options = {"num_attention_heads": 4, "intermediate_size": 48, "pad_token_id": 0}
    for hook, width in (("blocks.1.mlp.out.hook_in", 48), (RESIDUAL, 32)):
        project = base.copy(tmp_path / str(width)).set(model__backend="transformer_lens", dictionary__hook_point_in=hook)
        shutil.rmtree(project.path / "model")
        write_model(project.path / "model", "phi", options)
        project.run_all()
        assert open_activations(project.store).width(hook) == width
        promoted = [row["promoted"] for row in FeatureStore(project.path / "data" / "features").features(["promoted"])]
        assert {each is not None for each in promoted} == {hook == RESIDUAL}
