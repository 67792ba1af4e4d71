from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.errors import NumericsError
from pipeline.evaluation import language_model
from pipeline.evaluation.language_model import (
    PredictionMetrics,
    constant_replacements,
    keep_masked,
    prediction_divergence,
    prediction_loss,
)
from tests.evaluation import naive
from tests.evaluation.tiny import HOOK, hooked_run, tiny_tokens
from tests.messages import saying


def _logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(5, 7, 11, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [1, 200, 2**19])
def test_cross_entropy_and_kl_equal_the_naive_ones_with_unequal_masks(chunk, monkeypatch):
    monkeypatch.setattr(language_model, "CHUNK_ENTRIES", chunk)
    p, q = _logits(0), _logits(1)
    tokens = torch.randint(0, 11, (5, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(3)) < torch.linspace(0.1, 1, 5)[:, None]
    ce_p, ce_q, kl = prediction_divergence(p, q, tokens, mask)
    assert len(ce_p) == len(kl) == int(mask[:, 1:].sum())
    assert kl.dtype == torch.float64
    arrays = (tokens.numpy(), mask.numpy())
    assert float(ce_p.double().mean()) == pytest.approx(naive.cross_entropy(p.numpy(), *arrays), rel=1e-6)
    assert float(ce_q.double().mean()) == pytest.approx(naive.cross_entropy(q.numpy(), *arrays), rel=1e-6)
    assert float(kl.mean()) == pytest.approx(naive.kl(p.numpy(), q.numpy(), mask.numpy()), rel=1e-6)
    assert torch.equal(prediction_loss(p, tokens, mask), ce_p)


def test_kl_of_equal_logits_is_zero_and_half_precision_is_widened():
    p = _logits(4)
    tokens, mask = torch.zeros(5, 7, dtype=torch.int64), torch.ones(5, 7, dtype=torch.bool)
    _, _, kl = prediction_divergence(p, p.clone(), tokens, mask)
    assert float(kl.abs().max()) == 0.0
    assert prediction_loss(p.half(), tokens, mask).dtype == torch.float32


def test_masked_positions_keep_the_original():
    original, new = torch.zeros(2, 3, 4, dtype=torch.float16), torch.ones(2, 3, 4)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    got = keep_masked(mask, new, original)
    assert got.dtype == torch.float16
    assert torch.equal(got[..., 0] == 1, mask)


def test_ablations_equal_runs_with_plain_hooks(model, module):
    ids = torch.from_numpy(tiny_tokens().astype(np.int64))
    mask = ids != 0
    vector = torch.randn(16, generator=torch.Generator().manual_seed(5))
    want = hooked_run(module, ids, module.gpt_neox.layers[1], lambda x: torch.where(mask[..., None], vector.expand_as(x), x))
    got = model.logits(ids, constant_replacements({HOOK: vector.double()}, mask))
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-5)


def test_loss_recovered_has_the_right_direction():
    metrics = PredictionMetrics((HOOK,))
    for name, value in {"original": 3.0, "spliced": 3.2, "zero": 7.0, "mean": 5.0, "kl": 0.1}.items():
        metrics.update(name, torch.tensor([value - 1.0, value + 1.0]), "contexts")
    got = metrics.results()
    assert got["delta_ce"] == pytest.approx(0.2)
    assert got["loss_recovered_zero"] == pytest.approx(3.8 / 4)
    assert got["loss_recovered_mean"] == pytest.approx(1.8 / 2)
    assert got["ce_mean"] == pytest.approx(5.0)


def test_faults_name_the_hook_point_and_the_contexts():
    metrics = PredictionMetrics((HOOK,))
    with pytest.raises(NumericsError, match=saying(HOOK, "contexts 3 to 4", "zero", "finite")):
        metrics.update("zero", torch.tensor([1.0, torch.nan]), "held-out contexts 3 to 4")
    metrics.update("original", torch.empty(0), "")
    with pytest.raises(NumericsError, match=saying(HOOK, "masked")):
        metrics.results()
    for name in ("original", "spliced", "zero", "mean", "kl"):
        metrics.update(name, torch.tensor([2.0]), "")
    with pytest.raises(NumericsError, match=saying(HOOK, "loss_recovered_zero", "undefined", 2)):
        metrics.results()
