from __future__ import annotations

import pytest
import torch

from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import DataError, NumericsError
from pipeline.evaluation.in_memory import evaluate_reconstruction
from tests.evaluation import naive
from tests.messages import saying

SAE = {"kind": "sae", "d_in": 8, "d_sae": 24, "act_fn": "topk", "top_k": 4}


def _x(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_equals_the_naive_metrics():
    dictionary, x = build_dictionary(SAE, seed=1), _x(90, 8)
    got = evaluate_reconstruction(dictionary, x, batch_size=32)
    with torch.no_grad():
        f = dictionary.encode(x)
        want = {**naive.reconstruction(x.numpy(), dictionary(x).numpy()), **naive.sparsity(f.numpy())}
    for name in want:
        assert got[name] == pytest.approx(want[name], rel=1e-6), name
    assert got["evaluated_tokens"] == 90
    assert "decoder_max_cosine_q50" in got


def test_targets_mask_and_sequences():
    config = {**SAE, "kind": "transcoder", "d_out": 5, "hook_point_in": "a", "hook_point_out": "b"}
    dictionary, x, y = build_dictionary(config, seed=1), _x(6, 7, 8), _x(6, 7, 5, seed=2)
    mask = _x(6, 7, seed=3) > -0.5
    got = evaluate_reconstruction(dictionary, x, y, mask=mask, batch_size=4)
    flat = evaluate_reconstruction(dictionary, x[mask], y[mask])
    assert got["evaluated_tokens"] == int(mask.sum())
    for name in flat:
        assert got[name] == pytest.approx(flat[name], rel=1e-6), name


def test_a_perfect_reconstruction():
    """ReLU of (x, -x) decoded with (I, -I) is the identity."""
    dictionary = build_dictionary({"kind": "sae", "d_in": 4, "d_sae": 8, "act_fn": "relu"})
    with torch.no_grad():
        dictionary.W_E.copy_(torch.cat([torch.eye(4), -torch.eye(4)], dim=1))
        dictionary.W_D.copy_(torch.cat([torch.eye(4), -torch.eye(4)], dim=0))
    got = evaluate_reconstruction(dictionary, _x(50, 4))
    assert got["fvu"] == 0.0
    assert got["explained_variance"] == got["cosine_similarity"] == 1.0
    assert got["l2_ratio"] == got["relative_reconstruction_bias"] == 1.0
    assert got["l0_mean"] == 4.0
    assert got["decoder_max_cosine_q50"] == 0.0


def test_shapes_that_do_not_fit_are_refused():
    dictionary = build_dictionary(SAE)
    with pytest.raises(DataError, match=saying(8, "(5, 7)")):
        evaluate_reconstruction(dictionary, _x(5, 7))
    with pytest.raises(DataError, match=saying("(5, 8)", "(6, 8)")):
        evaluate_reconstruction(dictionary, _x(5, 8), _x(6, 8))
    with pytest.raises(DataError, match=saying("(5, 8)", "(4,)")):
        evaluate_reconstruction(dictionary, _x(5, 8), mask=torch.ones(4, dtype=torch.bool))


def test_features_of_layers_are_counted_by_layer():
    reads, writes = ["blocks.0.a", "blocks.1.a"], ["blocks.0.b", "blocks.1.b"]
    config = {"kind": "clt", "hook_points_in": reads, "hook_points_out": writes, "d_in": 8, "d_sae": 24}
    got = evaluate_reconstruction(
        build_dictionary({**config, "act_fn": "topk", "top_k": 4}), _x(30, 2, 8), _x(30, 2, 8, seed=1)
    )
    assert [got[f"l0_mean.{hook}"] for hook in reads] == [4.0, 4.0]
    assert {f"dead_fraction.{reads[1]}", f"l0_q50.{reads[1]}"} <= got.keys()


def test_a_mask_that_is_not_bool_is_refused():
    with pytest.raises(DataError, match=saying("mask:", "bool", "torch.float32")):
        evaluate_reconstruction(build_dictionary(SAE), _x(5, 8), mask=torch.ones(5))


def test_a_non_finite_activation_is_named():
    x = _x(30, 8)
    x[17, 3] = torch.inf
    with pytest.raises(NumericsError, match=saying("input", 16, "activation", "finite", "[1]")):
        evaluate_reconstruction(build_dictionary(SAE), x, batch_size=16)
