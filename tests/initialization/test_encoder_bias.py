"""init_encoder_bias_with_mean_hidden_pre under the grid search: the bias of each norm, against a pass over the sample in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.initialization.compose import build_base, initialize_
from pipeline.initialization.encoder_bias import set_encoder_bias_
from pipeline.initialization.grid_search import COARSE, FINE
from pipeline.initialization.sample import Sample
from pipeline.losses.reconstruction import reconstruction_loss
from pipeline.params.schema import InitializerParams
from tests.initialization.cases import config, rows, sample

TWO = {"kind": "crosscoder", "hook_points_in": ["a", "b"]}
TRANSCODER = {"kind": "transcoder", "hook_point_out": "output"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sae": ({}, {}),
    "factor": ({}, {"init_encoder_with_decoder_transpose_factor": 0.5, "bias_init_method": "mean"}),
    "glu": ({"use_glu_encoder": True}, {}),
    "b_D subtracted": ({"apply_b_dec_to_input": True}, {"bias_init_method": "mean"}),
    "activations": ({}, {"initialize_W_D_with_activations": True}),
    "encoder of its own": ({}, {"init_encoder_with_decoder_transpose": False}),
    "transcoder": (TRANSCODER, {"initialize_W_D_with_activations": True}),
    "crosscoder": (TWO, {}),
}


def made_of(case: str, **options: Any) -> tuple[Dictionary, Sample, InitializerParams]:
    fields, own = CASES[case]
    params = InitializerParams(init_encoder_bias_with_mean_hidden_pre=True, **own, **options)
    made = build_base(config(dtype="float64", **fields), params, seed=0)
    x, y = rows(), rows(seed=1)
    if case == "crosscoder":
        return made, sample(made, torch.stack([x, y], dim=1)), params
    return made, sample(made, x, y if case == "transcoder" else None), params


def recomputed(made: Dictionary, x: Tensor) -> Tensor:
    """b_E [F] with which the mean of h over all tokens is 0, token by token."""
    w = {name: tensor.detach().double() for name, tensor in made.named_parameters()}
    W_E = w["W_E"].flatten(0, 1) if w["W_E"].ndim == 3 else w["W_E"]
    total, slope = torch.zeros(W_E.shape[1], dtype=torch.float64), torch.zeros(W_E.shape[1], dtype=torch.float64)
    for token in x.double():
        read = token.flatten() - (w["b_D"] if getattr(made.config, "apply_b_dec_to_input", False) else 0.0)
        gate = torch.sigmoid(read @ w["W_G"] + w["b_G"]) if "W_G" in w else torch.ones_like(total)
        total += gate * (read @ W_E)
        slope += gate
    return -total / slope


@pytest.mark.parametrize("case", list(CASES))
def test_the_bias_follows_the_encoder_to_every_length(case: str) -> None:
    made, taken, params = made_of(case)
    initialize_(made, taken, params, batch_rows=64, seed=0)
    centred = set_encoder_bias_(made, taken)
    for norm in (0.1, 0.7, 5.0):
        made.scale_encoder_(norm / made.encoder_norms())
        centred.follow_(made)
        torch.testing.assert_close(made.encoder_bias().detach(), recomputed(made, taken.x), rtol=1e-11, atol=1e-11)


def test_a_feature_whose_gate_is_closed_keeps_its_bias() -> None:
    made, taken, _ = made_of("glu")
    with torch.no_grad():
        made.get_parameter("b_G")[2] = -1e4
        made.encoder_bias()[2] = 0.25
    centred = set_encoder_bias_(made, taken)
    made.scale_encoder_(torch.full_like(made.encoder_norms(), 3.0))
    centred.follow_(made)
    assert float(made.encoder_bias().detach()[2]) == 0.25
    rest = torch.arange(len(made.encoder_bias())) != 2
    torch.testing.assert_close(made.encoder_bias().detach()[rest], recomputed(made, taken.x)[rest], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", list(CASES))
def test_the_grid_search_reads_the_sample_once_and_finds_the_norm_of_a_slow_one(case: str) -> None:
    """The slow one makes the encoder and its bias anew at each of its 70 norms, from all tokens."""
    made, taken, params = made_of(case, grid_search_init_norm=True)
    read: list[int] = []
    encode = made.pre_activations
    made.pre_activations = lambda x, padding=None: (read.append(len(x)), encode(x, padding))[1]  # type: ignore[method-assign,func-returns-value]
    found = initialize_(made, taken, params, batch_rows=64, seed=0)
    assert sum(n for n in read if n > 64) == len(taken) * (2 if case == "glu" else 1)

    slow, _, _ = made_of(case)
    initialize_(slow, taken, made_of(case)[2], batch_rows=64, seed=0)
    start = {name: tensor.detach().clone() for name, tensor in slow.named_parameters()}
    tied = case not in ("encoder of its own", "transcoder")

    @torch.no_grad()
    def loss(norm: float) -> float:
        lengths = start["W_D"].square().sum((0, 2) if case == "crosscoder" else 1).sqrt()
        slow.get_parameter("W_D").copy_(start["W_D"] * (norm / lengths)[:, None])
        if tied:
            slow.get_parameter("W_E").copy_(params.init_encoder_with_decoder_transpose_factor * slow.get_parameter("W_D").mT)
        slow.encoder_bias().copy_(recomputed(slow, taken.x))
        return float(reconstruction_loss(slow(taken.x[:64]), taken.y[:64]))

    step = 4.9 / (COARSE - 1)
    coarse = min((0.1 + step * i for i in range(COARSE)), key=loss)
    low, high = max(coarse - step, 0.01), coarse + step
    fine = min((low + (high - low) * i / (FINE - 1) for i in range(FINE)), key=loss)
    best = min((coarse, fine), key=loss)
    assert found["grid_search_norm"] == pytest.approx(best, rel=1e-12)
    assert found["grid_search_l_rec"] == pytest.approx(loss(best), rel=1e-6)
    torch.testing.assert_close(made.encoder_bias().detach(), slow.encoder_bias().detach(), rtol=1e-9, atol=1e-11)
