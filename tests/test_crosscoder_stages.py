"""A crosscoder through every stage on a small project: two layers of one model, and two checkpoints of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.analysis.feature_tables import FeatureStore
from pipeline.dictionaries.store import load_dictionary
from pipeline.lm.loading import load_language_model
from pipeline.norms.hook_norm import load_norms
from pipeline.opening import open_activations
from pipeline.seeding import generator
from tests.messages import says
from tests.project import Project, make_project

EARLY, LATE = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
OTHER = f"tuned:{EARLY}"
LAYERS, CHECKPOINTS = (EARLY, LATE), (EARLY, OTHER)
RECIPE: dict[str, Any] = {
    "dictionary__kind": "crosscoder",
    "dictionary__hook_point_in": None,
    "dictionary__apply_b_dec_to_input": False,
    "dictionary__act_fn": "batchtopk",
    "initializer__init_encoder_bias_with_mean_hidden_pre": True,
}


def make_checkpoint(of: Path, path: Path) -> None:
    """Another checkpoint of a model: its weights moved a little."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(of, path)
    weights = load_file(path / "model.safetensors")
    draw = generator(1, "tests", "another checkpoint")
    moved = {
        name: w + 0.1 * torch.randn(w.shape, generator=draw) if w.is_floating_point() else w for name, w in weights.items()
    }
    save_file(moved, path / "model.safetensors", metadata={"format": "pt"})


def make(path: Path, hooks: tuple[str, ...], **changes: Any) -> Project:
    project = make_project(path)
    models = None
    if OTHER in hooks:
        make_checkpoint(path / "model", path / "tuned")
        models = {"tuned": {"model_name": "tuned", "revision": None}}
    return project.set(**{**RECIPE, "models": models, "dictionary__hook_points_in": list(hooks), **changes})


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two checkpoints, all stages run."""
    return make(tmp_path_factory.mktemp("checkpoints") / "project", CHECKPOINTS).run_all()


def metrics(project: Project, stage: str = "evaluation") -> dict[str, Any]:
    return json.loads((project.path / "metrics" / f"{stage}.json").read_text())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dictionary__act_fn": "topk", "dictionary__sparsity_include_decoder_norm": False},
        {
            "dictionary__act_fn": "jumprelu",
            "trainer__target_l0": 4.0,
            "initializer__initialize_W_D_with_activations": False,
            "initializer__grid_search_init_norm": True,
            "initializer__bias_init_method": "geometric_median",
        },
        {
            "dictionary__act_fn": "relu",
            "trainer__sparsity_loss_type": "tanh-quad",
            "dictionary__norm_activation": "token-wise",
            "fold__mode": "keep",
            "activations__target": "activations-2d",
            "activations__batch_size": 8,
        },
        {
            "dictionary__act_fn": "topk",
            "trainer__auxk_coefficient": 0.03125,
            "trainer__revive_dead_features": False,
            "initializer__initialize_W_D_with_activations": False,
            "initializer__initialize_W_D_with_active_subspace": True,
        },
    ],
    ids=["batchtopk", "topk-without-norm", "jumprelu-grid-search", "relu-token-wise-2d", "topk-auxk-subspace"],
)
def test_every_stage_runs_on_two_layers(tmp_path: Path, changes: dict[str, Any]) -> None:
    project = make(tmp_path / "project", LAYERS, **changes).run_all()
    found = metrics(project)
    assert found["fvu"] < 1
    assert found["loss_recovered_mean"] > 0
    # So short a run is judged by both layers together: what it wins at one it may lose at the other.
    for hook in LAYERS:
        assert f"fvu.{hook}" in found
        assert {f"delta_ce.{hook}", f"written_norm_q50.{hook}", f"exclusive_fraction.{hook}", f"pca_fvu.{hook}"} <= found.keys()
    assert f"written_cosine_q50.{EARLY}.{LATE}" in found
    served = load_dictionary(project.path / "data" / "inference" / "main")
    assert (served.hooks_in, served.hooks_out) == (LAYERS, LAYERS)
    if changes.get("fold__mode") != "keep":
        assert metrics(project, "fold")["relative_error"] <= 1e-9
        torch.testing.assert_close(served.decoder_norms(), torch.ones(64))


def test_each_checkpoint_has_a_store_that_is_its_own_activations(checkpoints: Project) -> None:
    path = checkpoints.path
    assert len([p for p in (path / "data" / "store").iterdir() if p.is_dir()]) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        store = open_activations("data/activations.json")
    assert store.hook_points == [EARLY, OTHER]
    part = store.read_rows_meta(0, 200)
    ids = json.loads((path / "data" / "activations.json").read_text())
    assert ids["fingerprint"] != ids["models"]["tuned"]["fingerprint"]
    from pipeline.corpus.tokens import open_tokens

    contexts = torch.from_numpy(open_tokens(path / "data" / "tokens.zarr").train.read()).long()
    for key, name in ((EARLY, "model"), (OTHER, "tuned")):
        model = load_language_model(str(path / name), device="cpu")
        acts = model.activations(contexts[part.context_ids.long()], [EARLY])[EARLY]
        wanted = acts[torch.arange(200), part.positions.long()]
        torch.testing.assert_close(store.read(key, 0, 200).float(), wanted, rtol=2**-7, atol=1e-3)
    norms = load_norms(path / "data" / "norms.json")
    assert set(norms) == {EARLY, OTHER}
    assert norms[EARLY].mean_norm != norms[OTHER].mean_norm


def test_each_checkpoint_is_evaluated(checkpoints: Project) -> None:
    found = metrics(checkpoints)
    models = [load_language_model(str(checkpoints.path / name), device="cpu") for name in ("model", "tuned")]
    assert models[0].digest != models[1].digest
    assert found["ce_original"] != found["ce_original.tuned"]
    for name in ("ce_spliced", "ce_mean", "ce_zero", "delta_ce", "kl", "loss_recovered_mean", "pca_delta_ce"):
        assert f"{name}.tuned" in found
        assert found[name] != found[f"{name}.tuned"]
    assert found["delta_ce.tuned"] == pytest.approx(found["ce_spliced.tuned"] - found["ce_original.tuned"])
    assert found[f"delta_ce.{OTHER}"] == found["delta_ce.tuned"]
    plots = checkpoints.path / "metrics" / "plots" / "evaluation"
    shares = json.loads((plots / "written_share.json").read_text())
    assert set(shares) == {EARLY, OTHER}
    assert all(sum(counts) == 64 for counts in shares.values())
    assert (plots / "written_share.png").stat().st_size > 1000
    rows = FeatureStore(checkpoints.path / "data" / "features").features(["written_cosines"])
    wanted = torch.nn.functional.cosine_similarity(
        *load_dictionary(checkpoints.path / "data/inference/main").W_D.detach(), dim=-1
    )
    assert [row["written_cosines"] for row in rows] == [[pytest.approx(float(value), abs=1e-5)] for value in wanted]
    config = json.loads((checkpoints.path / "data" / "trained" / "main" / "config.json").read_text())
    assert config["provenance"]["model"]["models"]["tuned"]["name"] == "tuned"


def test_a_run_that_is_taken_up_again_ends_with_the_same_bytes(checkpoints: Project, tmp_path: Path) -> None:
    """The kept end of the run is written again; trained anew it is the same."""
    copy = checkpoints.copy(tmp_path / "copy")
    weights = Path("data") / "trained" / "main" / "weights.safetensors"
    before = (copy.path / weights).read_bytes()
    for lost in ("data/trained", "data/checkpoints"):
        shutil.rmtree(copy.path / lost)
        outcome = copy.run("train")
        assert outcome.exit_code == 0, outcome.stderr
        assert (copy.path / weights).read_bytes() == before


def test_a_store_of_another_checkpoint_is_noticed(checkpoints: Project, tmp_path: Path) -> None:
    copy = checkpoints.copy(tmp_path / "copy")
    manifest = json.loads((copy.path / "data" / "activations.json").read_text())
    shutil.rmtree(copy.path / "data" / "store" / manifest["models"]["tuned"]["store"])
    outcome = copy.run("compute_norm")
    assert outcome.exit_code == 2
    says(outcome.stderr, "store", "missing")
    again = copy.run("generate_activations")
    assert again.exit_code == 0, again.stderr
    assert json.loads((copy.path / "data" / "activations.json").read_text()) == manifest
    copy.set(models={"tuned": {"model_name": "elsewhere", "revision": None}})
    outcome = copy.run("generate_activations")
    assert outcome.exit_code == 2
    says(outcome.stderr, "elsewhere")


def test_a_model_of_another_tokenizer_is_refused(checkpoints: Project, tmp_path: Path) -> None:
    copy = checkpoints.copy(tmp_path / "copy")
    path = copy.path / "tuned" / "tokenizer.json"
    definition = json.loads(path.read_text())
    (first, a), (second, b) = list(definition["model"]["vocab"].items())[-2:]
    definition["model"]["vocab"] |= {first: b, second: a}
    path.write_text(json.dumps(definition))
    outcome = copy.run("generate_activations")
    assert outcome.exit_code == 2
    says(outcome.stderr, "models.tuned:", "tuned", "tokenizer")
