"""A dictionary that its language models cannot have is refused by the stage that would generate for it, before it does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.messages import says
from tests.project import CONTEXT, D_MODEL, Project, make_project

READ = "blocks.0.hook_resid_post"
LORSA: dict[str, Any] = {
    "dictionary__kind": "lorsa",
    "dictionary__hook_point_in": "blocks.1.ln1.hook_out",
    "dictionary__hook_point_out": "blocks.1.hook_attn_out",
    "dictionary__n_qk_heads": 4,
    "dictionary__d_qk_head": 8,
    "dictionary__n_ctx": CONTEXT,
    "dictionary__rotary_dim": 2,
    "dictionary__rotary_adjacent_pairs": False,
    "dictionary__apply_b_dec_to_input": False,
    "activations__target": "activations-2d",
    "activations__batch_size": 8,
    "initializer__initialize_lorsa_with_mhsa": True,
    "initializer__initialize_W_D_with_activations": False,
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A new project, no stage run."""
    return make_project(tmp_path / "project")


def change_model(project: Project, name: str, **changes: Any) -> None:
    """Change the configuration of a model; its weights no longer fit it, and are not looked at."""
    path = project.path / name / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(project: Project, *parts: object) -> None:
    """Generating ends with a message that has these parts; there are no tokens that it could have started from, and nothing is written."""
    outcome = project.run("generate_activations")
    assert (outcome.exit_code, outcome.exception) == (2, None), outcome
    says(outcome.stderr, *parts)
    assert not (project.path / "data").exists()


@pytest.mark.parametrize(
    ("key", "value", "model", "got"),
    [
        ("n_qk_heads", 1, 2, "got 1"),
        ("d_qk_head", 4, 8, "got 4"),
        ("rotary_dim", 4, 2, "got 4"),
        ("rotary_base", 500.0, 10000.0, "got 500.0"),
        ("rotary_adjacent_pairs", True, "false", "got true"),
    ],
)
def test_heads_that_are_not_the_models_are_refused(project: Project, key: str, value: Any, model: Any, got: str) -> None:
    project.set(**{**LORSA, f"dictionary__{key}": value})
    refused(project, f"dictionary.{key}:", model, got, "initialize_lorsa_with_mhsa")


def test_an_attention_that_the_kind_cannot_be_is_refused(project: Project) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "partial_rotary_factor": 0.25, "factor": 2.0}
    change_model(project, "model", rope_parameters=rope)
    project.set(**LORSA)
    refused(project, "dictionary.positional_embedding_type:", "rope_type", "yarn", "lorsa", "default")


def test_a_window_that_is_shorter_than_the_context_is_refused(project: Project) -> None:
    path = project.path / "model" / "config.json"
    sizes = dict.fromkeys(("hidden_size", "intermediate_size"), 16)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2, "vocab_size": 300}
    path.write_text(json.dumps({"model_type": "mistral", "sliding_window": 4, **sizes, **heads}))
    project.set(**{**LORSA, "dictionary__rotary_dim": 8})
    refused(project, "dictionary.n_ctx:", "sliding_window", 4, f"got {CONTEXT}")


@pytest.mark.parametrize("hooks", [[READ, f"wide:{READ}"], [f"wide:{READ}", READ]])
def test_a_crosscoder_over_models_of_different_width_is_refused(project: Project, hooks: list[str]) -> None:
    shutil.copytree(project.path / "model", project.path / "wide")
    change_model(project, "wide", hidden_size=2 * D_MODEL)
    widths = {READ: D_MODEL, f"wide:{READ}": 2 * D_MODEL}
    project.set(
        models={"wide": {"model_name": "wide", "revision": None}},
        dictionary__kind="crosscoder",
        dictionary__hook_point_in=None,
        dictionary__hook_points_in=hooks,
        dictionary__apply_b_dec_to_input=False,
    )
    first, second = hooks
    refused(project, "dictionary.hook_points_in:", "crosscoder", f"{first} is {widths[first]}", f"{second} {widths[second]}")


def test_a_stated_width_that_is_not_the_models_is_refused(project: Project) -> None:
    project.set(dictionary__d_model=D_MODEL + 1)
    refused(project, "dictionary.d_model:", D_MODEL + 1, READ, D_MODEL)
