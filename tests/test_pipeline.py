"""The stages one after another on a small project: what they write, that it is the same every time, and that it can be traced."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import api
from pipeline.corpus.tokens import open_tokens
from pipeline.dictionaries.build import build_dictionary
from pipeline.dictionaries.store import load_dictionary
from pipeline.errors import DataError
from pipeline.lm.loading import load_language_model
from pipeline.opening import open_activations
from tests.project import CONTEXT, Project, make_project

OUTS = ("data/initial/main", "data/trained/main", "data/inference/main")
FLAT_KEYS = [
    "fvu",
    "explained_variance",
    "l0_mean",
    "dead_fraction",
    "dense_fraction",
    "ce_original",
    "ce_spliced",
    "ce_zero",
    "ce_mean",
    "delta_ce",
    "loss_recovered_zero",
    "loss_recovered_mean",
    "kl",
    "pca_fvu",
    "pca_delta_ce",
]


def digest(project: Project, name: str) -> str:
    return hashlib.sha256((project.path / name).read_bytes()).hexdigest()


def weights(project: Project) -> list[str]:
    return [digest(project, f"{out}/weights.safetensors") for out in OUTS]


def test_metrics_have_their_flat_keys(finished_project: Project) -> None:
    metrics = json.loads((finished_project.path / "metrics" / "evaluation.json").read_text())
    assert not [key for key in FLAT_KEYS if key not in metrics]
    assert metrics["explained_variance"] == pytest.approx(1 - metrics["fvu"])
    assert metrics["delta_ce"] == pytest.approx(metrics["ce_spliced"] - metrics["ce_original"])
    assert 0 < metrics["l0_mean"] <= 4
    history = [
        json.loads(line) for line in (finished_project.path / "metrics" / "train_history.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in history] == sorted({line["step"] for line in history})
    assert len(history) >= 8


def permissions(project: Project) -> set[tuple[str, int]]:
    """What files and directories have, below data and metrics."""
    found = [path for name in ("data", "metrics") for path in (project.path / name).rglob("*")]
    return {("directory" if path.is_dir() else "file", path.stat().st_mode & 0o777) for path in found}


def test_same_parameters_same_bytes_with_the_users_permissions(finished_project: Project, tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        other = make_project(tmp_path / "other").run_all()
    finally:
        os.umask(umask)
    assert permissions(other) == {("directory", 0o700), ("file", 0o600)}
    assert permissions(finished_project) == {("directory", 0o777 & ~umask), ("file", 0o666 & ~umask)}
    for name in (*(f"{out}/{file}" for out in OUTS for file in ("config.json", "weights.safetensors")), "data/activations.json", "data/norms.json", "metrics/evaluation.json", "metrics/train_history.jsonl"):  # fmt: skip
        assert digest(other, name) == digest(finished_project, name), name


def test_every_row_traces_back_to_its_token_and_text(finished_project: Project) -> None:
    tokens = open_tokens(finished_project.path / "data" / "tokens.zarr")
    store = open_activations(finished_project.store)
    model = load_language_model(str(finished_project.path / "model"), device="cpu")
    (hook,) = store.hook_points
    rows = store.read(hook, 0, store.n_rows).float()
    meta = store.read_rows_meta(0, store.n_rows)
    seen = set()
    for row in range(0, store.n_rows, 97):
        context, position = int(meta.context_ids[row]), int(meta.positions[row])
        ids = tokens.train.read(context, context + 1)
        assert int(meta.tokens[row]) == ids[0, position]
        traced = tokens.trace("train", context, position)
        record = tokens.train.document(int(tokens.train.read(context, context + 1, "document_ids")[0, position]))
        assert traced.text == record["text"][traced.start : traced.end]
        expected = model.activations(torch.from_numpy(ids.astype(np.int64)), [hook])[hook][0, position]
        torch.testing.assert_close(rows[row], expected, rtol=1e-2, atol=1e-2)
        seen.add((context, position))
    assert len({(int(c), int(p)) for c, p in zip(meta.context_ids, meta.positions, strict=True)}) == store.n_rows


def test_folded_is_the_trained_function(finished_project: Project) -> None:
    trained = load_dictionary(finished_project.path / "data/trained/main", dtype=torch.float64)
    folded = load_dictionary(finished_project.path / "data/inference/main", dtype=torch.float64)
    norms = json.loads((finished_project.path / "data/norms.json").read_text())["hook_points"]
    store = open_activations(finished_project.store)
    (hook,) = store.hook_points
    x = store.read(hook, 0, 200).double()
    scale = store.width(hook) ** 0.5 / norms[hook]["mean_norm"]
    torch.testing.assert_close(folded(x), trained(x * scale) / scale, rtol=1e-5, atol=1e-5)


def test_the_fold_stage_has_its_own_options(finished_project: Project, tmp_path: Path) -> None:
    """Neither is the default: units as trained, so that a row has the length 1 / s, and JumpReLU for TopK."""
    project = finished_project.copy(tmp_path / "other")
    project.set(fold__feature_units="normalized", fold__convert_topk_to_jumprelu=True)
    assert project.run("fold_norm").exit_code == 0
    folded = load_dictionary(project.path / "data/inference/main")
    usual = load_dictionary(finished_project.path / "data/inference/main")
    (norm,) = json.loads((project.path / "data/norms.json").read_text())["hook_points"].values()
    lengths = {name: made.get_parameter("W_D").detach().norm(dim=-1) for name, made in (("normalized", folded), ("raw", usual))}
    in_norm = norm["mean_norm"] / lengths["raw"].new_tensor(folded.config.d_in).sqrt()
    torch.testing.assert_close(lengths["normalized"], in_norm.expand_as(lengths["normalized"]), rtol=1e-4, atol=0)
    torch.testing.assert_close(lengths["raw"], torch.ones_like(lengths["raw"]), rtol=1e-4, atol=0)
    assert (folded.config.act_fn, usual.config.act_fn) == ("jumprelu", "topk")


@pytest.mark.parametrize(
    "changes",
    [
        {"dictionary__act_fn": "batchtopk"},
        {"dictionary__act_fn": "jumprelu", "initializer__init_log_jumprelu_threshold_value": -2.3, "trainer__sparsity_loss_type": "power", "trainer__auxk_coefficient": None, "fold__calibration_tokens": 0},
        {"dictionary__act_fn": "relu", "trainer__sparsity_loss_type": "power", "trainer__auxk_coefficient": None, "fold__mode": "keep", "dictionary__norm_activation": "token-wise"},
        {"dictionary__kind": "transcoder", "dictionary__apply_b_dec_to_input": False, "dictionary__hook_point_in": "blocks.1.ln2.hook_out", "dictionary__hook_point_out": "blocks.1.hook_mlp_out", "dictionary__skip": True, "initializer__initialize_tc_with_mlp": True, "initializer__initialize_W_D_with_activations": False},
        {"activations__target": "activations-2d", "activations__batch_size": 8, "dictionary__use_glu_encoder": True},
        {"model__backend": "transformer_lens", "trainer__auxk_coefficient": 0.03125, "trainer__dead_threshold": 500, "trainer__initial_k": 8},
        {"dictionary__kind": "lorsa", "dictionary__hook_point_in": "blocks.1.ln1.hook_out", "dictionary__hook_point_out": "blocks.1.hook_attn_out", "dictionary__n_qk_heads": 4, "dictionary__d_qk_head": 8, "dictionary__n_ctx": CONTEXT, "dictionary__rotary_dim": 2, "dictionary__rotary_adjacent_pairs": False, "dictionary__apply_b_dec_to_input": False, "activations__target": "activations-2d", "activations__batch_size": 8, "initializer__initialize_lorsa_with_mhsa": True, "initializer__initialize_W_D_with_active_subspace": True, "initializer__initialize_W_D_with_activations": False},
        {"dictionary__kind": "clt", "dictionary__hook_point_in": None, "dictionary__hook_points_in": ["blocks.0.ln2.hook_out", "blocks.1.ln2.hook_out"], "dictionary__hook_points_out": ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"], "dictionary__apply_b_dec_to_input": False, "initializer__initialize_W_D_with_activations": False, "initializer__initialize_W_D_with_active_subspace": True, "initializer__cross_layer_decoders": "by_sources"},
    ],
    ids=["batchtopk", "jumprelu", "relu_kept", "transcoder", "sequences", "bridge_auxk", "heads", "cross_layer"],
)  # fmt: skip
def test_other_pipelines_run_to_the_end(project: Project, changes: dict[str, object]) -> None:
    project.set(**changes).run_all()
    metrics = json.loads((project.path / "metrics" / "evaluation.json").read_text())
    assert metrics["fvu"] < 1.0
    assert 0 < metrics["l0_mean"] <= 64
    if changes.get("dictionary__act_fn") == "batchtopk":
        folded = load_dictionary(project.path / "data/inference/main")
        assert folded.config.act_fn == "jumprelu"
        assert metrics["l0_mean"] == pytest.approx(4, rel=0.25)


def test_contexts_hold_no_more_than_their_tokens(finished_project: Project) -> None:
    tokens = open_tokens(finished_project.path / "data" / "tokens.zarr")
    assert tokens.train.context_size == CONTEXT
    train = {tokens.train.document(i)["key"] for i in range(tokens.train.n_documents)}
    held = {tokens.eval.document(i)["key"] for i in range(tokens.eval.n_documents)}
    assert not train & held


def test_a_trained_dictionary_is_never_taken_for_one_that_takes_raw_activations(
    finished_project: Project, tmp_path: Path
) -> None:
    place = finished_project.path / "data"
    rows = open_activations(finished_project.store)
    x = rows.read(rows.hook_points[0], 0, 300).float()
    with pytest.warns(UserWarning, match=r"trained/main: takes normalised activations .*folded"):
        folded = api.load_dictionary(place / "trained/main")
    torch.testing.assert_close(folded(x), api.load_dictionary(place / "inference/main")(x))
    assert not api.load_dictionary(place / "trained/main", trained=True).config.folded
    made = build_dictionary({"kind": "sae", "d_in": 4, "d_sae": 8})
    bare = tmp_path / "bare"
    made.save(bare)
    with pytest.raises(DataError, match=r"bare: takes normalised .* no norms .*trained=True"):
        api.load_dictionary(bare)
    made.rebuilt(made.state_dict(), norm_activation="token-wise", norms={"input": {"mean_norm": 2.0}}).save(bare)
    with pytest.raises(DataError, match=r"token-wise.* depends on the data"):
        api.load_dictionary(bare)


def test_a_snapshot_is_folded_by_the_stage(finished_project: Project, tmp_path: Path) -> None:
    project = finished_project.copy(tmp_path / "copy")
    project.set(trainer__n_checkpoints=2)
    shutil.rmtree(project.path / "data/checkpoints")
    assert project.run("train").exit_code == 0
    first, last = sorted((project.path / "data/checkpoints").glob("*/snapshot-*"))
    for snapshot in (first, last):
        assert project.run("fold_norm", "--trained", str(snapshot), "--out", "data/snapshots").exit_code == 0
    made = [load_dictionary(project.path / "data/snapshots" / path.name) for path in (first, last)]
    usual = load_dictionary(finished_project.path / "data/inference/main")
    assert torch.equal(made[1].get_parameter("W_D"), usual.get_parameter("W_D"))
    assert not torch.equal(made[0].get_parameter("W_D"), usual.get_parameter("W_D"))
