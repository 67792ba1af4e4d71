"""initializer.from_dictionary through the stages: a run on other text starts from another run's inference dictionary."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pipeline.dictionaries.store import load_dictionary, read_config
from pipeline.files import read_json
from pipeline.training.schedules import resolve_learning_rate
from tests.messages import between_ends, says
from tests.project import Project, make_project

BASE = "dictionaries/base"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose dictionary is trained and folded, copied to dictionaries/base; then its text is another."""
    project = make_project(tmp_path_factory.mktemp("fine-tuning") / "project").run_all(until="fold_norm")
    for stage in ("trained", "inference"):
        shutil.copytree(project.path / "data" / stage / "main", project.path / "dictionaries" / stage)
    (project.path / "dictionaries" / "inference").rename(project.path / BASE)
    text = project.path / "text.jsonl"
    text.write_text(text.read_text().replace("dog", "fish").replace("home", "out").replace("the", "a"))
    project.set(initializer__from_dictionary=BASE, dictionary__name="tuned")
    return project.run_all(until="compute_norm")


@pytest.fixture
def project(made: Project, tmp_path: Path) -> Project:
    return made.copy(tmp_path / "project")


def test_a_run_starts_from_it(project: Project) -> None:
    outcome = project.run("initialize")
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    assert between_ends(outcome.stderr) == [
        "initialize: weights of dictionaries/base (folded, sae, topk, 64 features); nothing changed; computes the same"
    ]
    base, initial = (load_dictionary(project.path / place) for place in (BASE, "data/initial/tuned"))
    norms = read_json(project.path / "data" / "norms.json", "norms", "")["hook_points"]
    assert initial.config.norms["blocks.0.hook_resid_post"]["mean_norm"] == norms["blocks.0.hook_resid_post"]["mean_norm"]
    assert base.config.norms["blocks.0.hook_resid_post"]["mean_norm"] != norms["blocks.0.hook_resid_post"]["mean_norm"]
    back = initial.fold(norms)
    with torch.no_grad():
        for name, tensor in base.state_dict().items():
            assert float((back.state_dict()[name] - tensor).norm() / tensor.norm()) <= 1e-6, name
    assert initial.config.provenance["initialization"]["from_dictionary"] == BASE
    assert len(initial.config.provenance["made_from"]["dictionary"]) == 64


def test_it_trains_at_a_lower_rate_and_says_what_has_no_effect(project: Project) -> None:
    for stage in ("initialize", "train", "fold_norm"):
        outcome = project.run(stage)
        assert outcome.exit_code == 0, outcome.stderr or outcome.exception
        if stage == "train":
            line = next(line for line in outcome.stderr.splitlines() if "change nothing" in line)
            for key, value in (("bias_init_method", "mean"), ("initialize_W_D_with_activations", "true"), ("tokens", 512)):
                assert f"initializer.{key} {value} (from_dictionary gives the weights)" in line
    figures = read_json(project.path / "metrics" / "train.json", "metrics", "")
    config = read_config(project.path / "data" / "trained" / "tuned")
    assert figures["learning_rate"] == pytest.approx(0.2 * resolve_learning_rate("auto", config, figures["steps"]))
    assert config.provenance["training"]["trainer"]["lr"] == figures["learning_rate"]
    assert config.provenance["made_from"]["dictionary"]
    assert (project.path / "data" / "inference" / "tuned" / "config.json").exists()


def test_a_stated_rate_is_taken(project: Project) -> None:
    project.set(trainer__lr=3e-4)
    for stage in ("initialize", "train"):
        assert project.run(stage).exit_code == 0
    assert read_json(project.path / "metrics" / "train.json", "metrics", "")["learning_rate"] == 3e-4


def test_a_trained_one_to_jumprelu(project: Project) -> None:
    project.set(initializer__from_dictionary="dictionaries/trained", dictionary__act_fn="jumprelu", trainer__target_l0=4)
    outcome = project.run("initialize")
    assert outcome.exit_code == 0, outcome.stderr or outcome.exception
    (line,) = between_ends(outcome.stderr)
    says(
        line,
        "dictionaries/trained",
        "(trained, sae, topk, 64 features)",
        "act_fn topk -> jumprelu",
        "L0 of 4",
        "set on 512 tokens",
    )
    assert project.run("train").exit_code == 0


@pytest.mark.parametrize("place", ["data/inference/tuned", "data/initial/tuned", "./data/trained/../trained/tuned/"])
def test_an_output_of_the_run_itself_is_refused(project: Project, place: str) -> None:
    project.set(initializer__from_dictionary=place)
    outcome = project.run("inputs")
    assert outcome.exit_code == 2
    says(outcome.stderr, "initializer.from_dictionary:", place, "by this run itself", "dictionary.name tuned")
    project.set(initializer__from_dictionary="data/inference/main")
    assert project.run("inputs").exit_code == 0
