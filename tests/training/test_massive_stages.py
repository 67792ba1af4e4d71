"""The stages on a model one of whose tokens has massive activations: what is left out, what is written, what comes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.activations.schema import calibration_rows
from pipeline.dictionaries.store import load_dictionary, read_config
from pipeline.evaluation.in_memory import evaluate_reconstruction
from pipeline.opening import open_activations
from tests.project import Project

HOOK = "blocks.0.hook_resid_post"
STAGES = ("generate_activations", "compute_norm", "initialize", "train", "fold_norm")
TIMES = 3000.0


def with_massive_token(project: Project) -> int:
    """Make one token's embedding TIMES as long: the residual stream's own, which the model's layers normalise."""
    store = open_activations(project.store)
    tokens = store.read_rows_meta(0, store.n_rows).tokens
    found, counts = tokens.unique(return_counts=True)
    chosen = int(found[(counts - len(tokens) // 40).abs().argmin()])
    weights = next((project.path / "model").glob("*.safetensors"))
    tensors = load_file(weights)
    (name,) = [name for name in tensors if name.endswith("embed_in.weight")]
    tensors[name][chosen] *= TIMES
    save_file(tensors, weights, {"format": "pt"})
    return chosen


def run(project: Project, **changes: Any) -> Project:
    project.set(trainer__total_training_tokens=16384, **changes)
    for stage in STAGES:
        outcome = project.run(stage)
        if outcome.exception is not None:
            raise outcome.exception
        assert outcome.exit_code == 0, outcome.stderr
    return project


def newest(project: Project) -> Any:
    """The store of the last run; the finished project's own is still there."""
    manifest = read_json(project.path / "data" / "activations.json")
    return open_activations(project.path / "data" / "store" / manifest["fingerprint"])


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def ordinary_rows(project: Project, token: int, rows: tuple[int, int]) -> Tensor:
    store = newest(project)
    return store.read(HOOK, *rows).float()[store.read_rows_meta(*rows).tokens != token]


def fvu(project: Project, rows: Tensor) -> float:
    return evaluate_reconstruction(load_dictionary(project.path / "data/inference/main"), rows)["fvu"]


@pytest.mark.parametrize("act_fn", ["topk", "batchtopk"])
def test_massive_tokens_are_left_out_and_what_left_them_out_is_written(project: Project, act_fn: str) -> None:
    token = with_massive_token(project)
    run(project, dictionary__act_fn=act_fn)
    store = newest(project)
    massive = store.read_rows_meta(0, store.n_rows).tokens == token
    lengths = store.read(HOOK, 0, store.n_rows).double().norm(dim=-1)
    assert 20 < int(massive.sum()) < 400
    assert float(lengths[massive].min()) > 100 * float(lengths[~massive].max())
    for place in ("initial", "trained", "inference"):
        norm = (read_config(project.path / "data" / place / "main").norms or {})[HOOK]
        assert norm["max_norm_factor"] == 10.0
        assert norm["n_excluded"] == int(massive.sum())
        assert norm["n_tokens"] == int((~massive).sum())
        assert norm["median_norm"] == pytest.approx(sorted(lengths.tolist())[(len(lengths) - 1) // 2], rel=1e-6)
        assert norm["mean_norm"] == pytest.approx(float(lengths[~massive].mean()), rel=1e-9)
    held = calibration_rows(store, 256)
    figures = read_json(project.path / "metrics" / "fold.json")
    assert figures["calibration_tokens"] == int((~massive[held[0] : held[1]]).sum())
    assert int(massive[held[0] : held[1]].sum()) > 0
    trained_on = store.batches(128, seed=project.params["seed"], rows=(0, held[0]), buffer_rows=2**18)
    rows = [next(trained_on).rows for _ in range(16384 // 128)]
    assert read_json(project.path / "metrics" / "train.json")["tokens"] == sum(int((~massive[r]).sum()) for r in rows)
    assert fvu(project, ordinary_rows(project, token, held)) < 0.5


def test_contexts_without_the_rule(project: Project) -> None:
    """All tokens are trained on and none is excluded, but thresholds are set by the ordinary ones, which are learnt as well."""
    token = with_massive_token(project)
    project.set(activations__target="activations-2d", activations__batch_size=8, dictionary__act_fn="batchtopk")
    without = run(project.copy(project.path.parent / "without"), activations__max_norm_factor=None)
    with_rule = run(project)
    found = {}
    for name, made in (("rule", with_rule), ("off", without)):
        store = newest(made)
        meta = store.read_rows_meta(0, store.n_rows)
        kept, massive = meta.mask, meta.mask & (meta.tokens == token)
        norm = (read_config(made.path / "data/trained/main").norms or {})[HOOK]
        assert norm["max_norm_factor"] == (10.0 if name == "rule" else None)
        assert norm["n_excluded"] == (int(massive.sum()) if name == "rule" else 0)
        assert norm["n_tokens"] == int((kept & ~massive).sum())
        held = calibration_rows(store, 256)
        part = slice(*held)
        x, mask = store.read(HOOK, *held).float(), kept[part] & ~massive[part]
        found[name] = fvu(made, x[mask])
        assert read_json(made.path / "metrics" / "fold.json")["calibration_tokens"] == int(mask.sum())
        trained = read_json(made.path / "metrics" / "train.json")["tokens"]
        batches = store.batches(8, seed=made.params["seed"], rows=(0, held[0]), buffer_rows=2**18 // 16)
        order = torch.cat([next(batches).rows for _ in range(16384 // 128)])
        assert trained == int((kept[order] & ~massive[order] if name == "rule" else kept[order]).sum())
    assert found["rule"] < 0.5
    assert found["off"] < 1.3 * found["rule"]


def test_a_rule_is_another_run(project: Project) -> None:
    """Norms, checkpoints and weights follow activations.max_norm_factor; the store is not made again."""
    with_massive_token(project)
    first = run(project)
    store, weights = newest(first).path, (first.path / "data/trained/main/weights.safetensors").read_bytes()
    again = run(first, activations__max_norm_factor=1e6)
    assert newest(again).path == store
    assert (again.path / "data/trained/main/weights.safetensors").read_bytes() != weights
    assert (read_config(again.path / "data/trained/main").norms or {})[HOOK]["n_excluded"] == 0
