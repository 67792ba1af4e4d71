"""First thresholds for a target L0."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import NumericsError
from pipeline.initialization.compose import build_base, initialize_
from pipeline.initialization.thresholds import set_thresholds_
from pipeline.params.schema import InitializerParams
from tests.initialization.cases import config, rows, sample

STARTS: dict[str, dict[str, object]] = {
    "drawn": {},
    "activations": {"initialize_W_D_with_activations": True, "bias_init_method": "mean"},
    "grid search": {"grid_search_init_norm": True, "init_encoder_bias_with_mean_hidden_pre": True},
}


@pytest.mark.parametrize("include_norm", [True, False])
@pytest.mark.parametrize("start", STARTS)
def test_the_start_has_the_target_l0(start: str, include_norm: bool) -> None:
    """On the batch it is set on; one theta for all features, reported."""
    params = InitializerParams(init_log_jumprelu_threshold_value=-2.0, **STARTS[start])  # type: ignore[arg-type]
    made = build_base(config(act_fn="jumprelu", sparsity_include_decoder_norm=include_norm), params, seed=0)
    taken = sample(made, rows())
    found = initialize_(made, taken, params, batch_rows=64, seed=0, target_l0=2.5)
    thetas = made.log_jumprelu_threshold.detach().exp()
    assert len(thetas.unique()) == 1
    assert found["threshold"] == pytest.approx(float(thetas[0]))
    n_active = sum(1 for row in made.encode(taken.x[:64]).tolist() for value in row if value > 0)
    assert n_active == 2.5 * 64


def test_a_batch_without_a_positive_value_is_refused() -> None:
    params = InitializerParams(init_log_jumprelu_threshold_value=-2.0)
    made = build_base(config(act_fn="jumprelu"), params, seed=0)
    with torch.no_grad():
        made.encoder_bias().fill_(-1e6)
    with pytest.raises(NumericsError):
        set_thresholds_(made, sample(made, rows()), 3.0)
