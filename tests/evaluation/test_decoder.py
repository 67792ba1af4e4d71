from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.dictionaries.sharding import own_part
from pipeline.evaluation import decoder
from pipeline.evaluation.decoder import (
    decoder_metrics,
    decoder_rows,
    max_cosine_similarity,
    share_histogram,
    written_shares,
)
from pipeline.folding import fold_dictionary
from tests.training.threads import in_mesh


def _naive(rows: torch.Tensor) -> np.ndarray:
    unit = rows.double().numpy() / np.linalg.norm(rows.double().numpy(), axis=1, keepdims=True)
    similarity = unit @ unit.T
    return np.array([max(similarity[i, j] for j in range(len(unit)) if j != i) for i in range(len(unit))])


@pytest.mark.parametrize("block", [1, 30, 2**22])
def test_max_cosine_similarity_in_blocks_equals_the_whole_matrix(block, monkeypatch):
    monkeypatch.setattr(decoder, "BLOCK_ENTRIES", block)
    rows = torch.randn(23, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert np.allclose(max_cosine_similarity(rows).numpy(), _naive(rows), rtol=1e-12)


@pytest.mark.parametrize("block", [1, 50, 10**6])
@pytest.mark.parametrize("size", [2, 3])
def test_max_cosine_similarity_of_rows_in_several_processes(size, block, monkeypatch):
    monkeypatch.setattr(decoder, "BLOCK_ENTRIES", block)
    rows = torch.randn(24, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parts = in_mesh(1, size, lambda place: max_cosine_similarity(own_part(rows, 0, place.features), place.features))
    assert np.allclose(torch.cat(parts).numpy(), _naive(rows), rtol=1e-12)
    assert in_mesh(1, 2, lambda place: max_cosine_similarity(rows[:1], place.features).tolist()) == [[1.0], [1.0]]


def test_max_cosine_similarity_of_hand_sized_rows():
    rows = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [0.0, 0.0]])
    got = max_cosine_similarity(rows)
    assert got.tolist() == pytest.approx([2**-0.5, 2**-0.5, 2**-0.5, 0.0])
    assert max_cosine_similarity(rows[:1]).tolist() == [0.0]
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert max_cosine_similarity(opposite).tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("block", [10, 2**22])
def test_decoder_rows_are_the_weights(block, monkeypatch):
    monkeypatch.setattr(decoder, "BLOCK_ENTRIES", block)
    dictionary = build_dictionary({"kind": "sae", "d_in": 6, "d_sae": 20, "act_fn": "jumprelu"}, seed=1)
    assert torch.equal(decoder_rows(dictionary), dictionary.W_D.detach())
    metrics = decoder_metrics(dictionary)
    norms = dictionary.W_D.detach().double().norm(dim=1).numpy()
    assert metrics["decoder_norm_q50"] == pytest.approx(np.median(norms), rel=1e-6)
    assert metrics["decoder_max_cosine_q95"] == pytest.approx(np.quantile(_naive(dictionary.W_D.detach()), 0.95), rel=1e-6)
    assert metrics["threshold_q50"] == pytest.approx(0.1, rel=1e-6)


def test_no_thresholds_no_quantiles():
    dictionary = build_dictionary({"kind": "sae", "d_in": 6, "d_sae": 20, "act_fn": "topk", "top_k": 3})
    assert not any(name.startswith("threshold") for name in decoder_metrics(dictionary))


HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "tuned:blocks.1.hook_resid_post"]


def _crosscoder(rows: list[list[list[float]]], hooks: list[str]) -> Dictionary:
    """Decoder rows [P][F][2], everything else as drawn."""
    config = {"kind": "crosscoder", "d_in": 2, "d_sae": len(rows[0]), "hook_points_in": hooks, "dtype": "float64"}
    dictionary = build_dictionary(config, seed=0)
    with torch.no_grad():
        dictionary.W_D.copy_(torch.tensor(rows))
    return dictionary


def test_where_features_write_by_hand():
    """Feature 0 writes the same to both, 1 only to the first, 2 the opposite, 3 a right angle three times as long."""
    first = [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    second = [[1.0, 0.0], [0.0, 0.0], [0.0, -1.0], [0.0, 3.0]]
    dictionary = _crosscoder([first, second], HOOKS[:2])
    assert written_shares(dictionary).tolist() == [[0.5, 1.0, 0.5, 0.25], [0.5, 0.0, 0.5, 0.75]]
    histogram = share_histogram(written_shares(dictionary))
    assert [{i: n for i, n in enumerate(row) if n} for row in histogram] == [{5: 1, 10: 2, 19: 1}, {0: 1, 10: 2, 15: 1}]
    metrics = decoder_metrics(dictionary)
    assert metrics[f"exclusive_fraction.{HOOKS[0]}"] == 0.25
    assert metrics[f"exclusive_fraction.{HOOKS[1]}"] == 0.0
    assert metrics["shared_fraction"] == 0.75
    assert metrics[f"written_norm_q50.{HOOKS[1]}"] == pytest.approx(1.0)
    assert metrics[f"written_share_q50.{HOOKS[0]}"] == pytest.approx(0.5)
    cosine = f"{HOOKS[0]}.{HOOKS[1]}"  # of the three that write to both: 1, -1 and 0
    assert metrics[f"written_cosine_q50.{cosine}"] == pytest.approx(0.0)
    assert metrics[f"written_cosine_q95.{cosine}"] == pytest.approx(0.9)
    assert metrics[f"written_cosine_q05.{cosine}"] == pytest.approx(-0.9)


def test_every_pair_of_hook_points_has_its_cosine_and_silent_features_are_not_shared():
    rows = [[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]], [[-1.0, 0.0], [0.0, 0.0]]]
    metrics = decoder_metrics(_crosscoder(rows, HOOKS))
    found = [metrics[f"written_cosine_q50.{HOOKS[p]}.{HOOKS[q]}"] for p, q in ((0, 1), (1, 2), (0, 2))]
    assert found == [0.0, 0.0, -1.0]
    assert metrics["shared_fraction"] == 0.5  # the second writes nowhere


def test_means_of_the_largest_cosine_similarities():
    dictionary = build_dictionary({"kind": "sae", "d_in": 6, "d_sae": 20, "act_fn": "topk", "top_k": 3}, seed=1)
    metrics = decoder_metrics(dictionary)
    assert metrics["decoder_max_cosine_mean"] == pytest.approx(_naive(dictionary.W_D.detach()).mean(), rel=1e-6)
    assert metrics["encoder_max_cosine_mean"] == pytest.approx(_naive(dictionary.W_E.detach().T).mean(), rel=1e-6)


def test_shares_are_relative_to_the_length_of_the_activations():
    """Folding puts a hundredfold longer rows where activations are a hundredfold longer: the shares stay."""
    rng = torch.Generator().manual_seed(1)
    rows = torch.randn(3, 50, 2, generator=rng, dtype=torch.float64) * torch.rand(3, 50, 1, generator=rng, dtype=torch.float64)
    dictionary = _crosscoder(rows.tolist(), HOOKS)
    norms = dict(zip(HOOKS, (2.0, 200.0, 0.02), strict=True))
    folded = fold_dictionary(dictionary, norms).dictionary
    torch.testing.assert_close(written_shares(folded), written_shares(dictionary), rtol=1e-12, atol=0)
    before, after = decoder_metrics(dictionary), decoder_metrics(folded)
    for name, value in before.items():
        if name.startswith(("written_share", "written_cosine", "exclusive", "shared")):
            assert after[name] == pytest.approx(value, rel=1e-9), name
    assert after[f"written_norm_q50.{HOOKS[1]}"] > 50 * after[f"written_norm_q50.{HOOKS[0]}"]


def test_one_written_hook_point_has_no_shares():
    dictionary = build_dictionary({"kind": "sae", "d_in": 6, "d_sae": 20, "act_fn": "topk", "top_k": 3})
    assert not any(name.startswith(("written", "exclusive", "shared")) for name in decoder_metrics(dictionary))
