from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.dictionaries.registry import build_dictionary
from pipeline.evaluation import decoder
from pipeline.evaluation.decoder import decoder_metrics, decoder_rows, max_cosine_similarity


def _naive(rows: torch.Tensor) -> np.ndarray:
    unit = rows.double().numpy() / np.linalg.norm(rows.double().numpy(), axis=1, keepdims=True)
    similarity = unit @ unit.T
    return np.array([max(similarity[i, j] for j in range(len(unit)) if j != i) for i in range(len(unit))])


@pytest.mark.parametrize("block", [1, 30, 2**22])
def test_max_cosine_similarity_in_blocks_equals_the_whole_matrix(block, monkeypatch):
    monkeypatch.setattr(decoder, "BLOCK_ENTRIES", block)
    rows = torch.randn(23, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert np.allclose(max_cosine_similarity(rows).numpy(), _naive(rows), rtol=1e-12)


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
