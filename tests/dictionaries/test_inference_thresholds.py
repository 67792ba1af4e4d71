"""Inference thresholds of features in layers: one for each layer that has its own k, one for layers that compete."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.dictionaries.build import build_dictionary
from pipeline.errors import ParamsError
from pipeline.folding import mean_l0
from pipeline.params.schema import TrainerParams
from pipeline.training.revival import EXPECTED, least_silence
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


@torch.no_grad()
@pytest.mark.parametrize("act_fn", ["layertopk", "batchlayertopk"])
def test_a_k_of_a_token_need_be_no_multiple_of_the_layers(act_fn: str) -> None:
    """7 features a token of three layers: trained, folded and as JumpReLU."""
    fields = {"act_fn": act_fn, "d_sae": 60, "top_k": 7, "hook_points_in": LAYERS_IN, "hook_points_out": LAYERS_OUT}
    made = filled(kind="clt", top_k_of="token", seed=3, **fields)
    batches = [read_by(made, 400, seed) for seed in range(4)]
    f = made.encode(batches[0])
    if act_fn == "layertopk":
        assert (f > 0).sum((1, 2)).tolist() == [7] * 400
    assert int((f > 0).sum()) == 7 * 400
    largest = made.codes(batches[0]).z.flatten(1).sort(-1, descending=True).values[:, :7]
    if act_fn == "layertopk":
        assert torch.equal(torch.where(f > 0, made.codes(batches[0]).z, 0.0).flatten(1).sort(-1, True).values[:, :7], largest)
    scale = dict.fromkeys((*LAYERS_IN, *LAYERS_OUT), 6**0.5)  # factors of 1
    assert torch.equal(made.fold(scale).encode(batches[0]) > 0, f > 0)
    served, calibration = made.calibrated(batches)
    assert calibration.l0_before == pytest.approx(7.0)
    assert mean_l0(served, [(x, None) for x in batches])[0] == pytest.approx(7.0, rel=0.01)


@pytest.mark.parametrize("act_fn", ["topk", "batchtopk"])
def test_a_k_of_a_token_needs_layers_that_compete(act_fn: str) -> None:
    with pytest.raises(ParamsError, match=rf"top_k_of: {act_fn} has a budget for each layer"):
        filled(kind="clt", act_fn=act_fn, top_k_of="token", hook_points_in=LAYERS_IN, hook_points_out=LAYERS_OUT)


def test_a_configuration_without_top_k_of_counts_each_layer() -> None:
    """config.json of dictionaries that were saved before there was a choice; and what a silence is measured by."""
    fields = {"act_fn": "layertopk", "d_sae": 60, "top_k": 7, "hook_points_in": LAYERS_IN, "hook_points_out": LAYERS_OUT}
    each = filled(kind="clt", **fields)
    config = each.config.to_dict()
    assert config.pop("top_k_of") == "layer"
    assert build_dictionary(config).config == each.config
    together = filled(kind="clt", top_k_of="token", **fields)
    assert least_silence(each, TrainerParams()) == math.ceil(EXPECTED * 60 / 7)
    assert least_silence(together, TrainerParams()) == math.ceil(EXPECTED * 180 / 7)
