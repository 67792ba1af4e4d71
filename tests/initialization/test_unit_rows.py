"""trainer.decoder_constraint unit_norm: every start has unit rows, and what was a row's length is its feature's size."""

from __future__ import annotations

import pytest
import torch

from pipeline.initialization.compose import build_base, initialize_
from pipeline.params.schema import InitializerParams
from tests.initialization.cases import config, rows, sample

STARTS: dict[str, dict[str, object]] = {
    "drawn": {},
    "activations": {"initialize_W_D_with_activations": True, "bias_init_method": "mean"},
    "subspace": {"initialize_W_D_with_active_subspace": True, "init_encoder_bias_with_mean_hidden_pre": True},
}


@pytest.mark.parametrize("act_fn", ["topk", "jumprelu"])
@pytest.mark.parametrize("start", STARTS)
def test_rows_have_unit_length(start: str, act_fn: str) -> None:
    threshold = {"init_log_jumprelu_threshold_value": -2.0} if act_fn == "jumprelu" else {}
    params = InitializerParams(**{**STARTS[start], **threshold})  # type: ignore[arg-type]
    made = build_base(config(act_fn=act_fn), params, seed=0, unit_rows=True)
    initialize_(made, sample(made, rows()), params, batch_rows=64, seed=0, unit_rows=True)
    torch.testing.assert_close(made.decoder_rows().norm(dim=1), torch.ones(16))
    assert made.encoder_bias().isfinite().all()


def test_the_encoder_takes_what_the_rows_lose() -> None:
    """A constrained start reconstructs what the unconstrained one does: only lengths move from W_D to f."""
    params = InitializerParams(initialize_W_D_with_activations=True, bias_init_method="mean")
    found = []
    for unit_rows in (False, True):
        made = build_base(config(act_fn="topk"), params, seed=0, unit_rows=unit_rows)
        taken = sample(made, rows())
        initialize_(made, taken, params, batch_rows=64, seed=0, unit_rows=unit_rows)
        found.append((made(taken.x), made.encode(taken.x), made.decoder_rows()))
    (free, f, w), (unit, f_unit, w_unit) = found
    torch.testing.assert_close(unit, free, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(f_unit, f * w.norm(dim=1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(w_unit, w / w.norm(dim=1, keepdim=True))
