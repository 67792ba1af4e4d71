"""Inference thresholds of features in layers: one for each layer that has its own k, one for layers that compete."""

from __future__ import annotations

import pytest
import torch

from pipeline.folding import mean_l0
from tests.dictionaries.make import LAYERS_IN, LAYERS_OUT, filled, read_by


@torch.no_grad()
@pytest.mark.parametrize("act_fn", ["topk", "batchtopk", "layertopk", "batchlayertopk"])
def test_thresholds_of_layers(act_fn: str) -> None:
    made = filled(kind="clt", act_fn=act_fn, d_sae=60, top_k=6, hook_points_in=LAYERS_IN, hook_points_out=LAYERS_OUT, seed=3)
    made.scale_encoder_(torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)[:, None].expand(3, 60))
    batches = [read_by(made, 400, seed) for seed in range(4)]
    served, calibration = made.calibrated(batches)
    thetas = served.log_jumprelu_threshold.exp()
    distinct = {float(f"{value:.9g}") for value in thetas.flatten().tolist()}
    per_layer = act_fn in ("topk", "batchtopk")
    assert len(distinct) == (3 if per_layer else 1)
    layers = [sum((served.encode(x)[:, layer] > 0).sum().item() for x in batches) / 1600 for layer in range(3)]
    if per_layer:
        assert layers == pytest.approx([6.0] * 3, rel=0.01)
    assert sum(layers) == pytest.approx(calibration.l0_after) == pytest.approx(18.0, rel=0.01)
    assert mean_l0(made, [(x, None) for x in batches])[0] == pytest.approx(calibration.l0_before)
