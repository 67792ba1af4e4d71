"""Padding in the loss and the evaluation of a kind that reads sequences: what stands there is neither read nor counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import api
from pipeline.dictionaries.base import Dictionary
from pipeline.errors import DataError, ParamsError
from tests.dictionaries.make import filled, inputs
from tests.messages import saying

D, B, S = 6, 4, 9
FIELDS: dict[str, Any] = {"n_qk_heads": 4, "d_qk_head": 4, "n_ctx": S, "rotary_dim": 2, "d_sae": 24, "d_in": D}
HOOKS = {"hook_point_in": "blocks.1.ln1.hook_out", "hook_point_out": "blocks.1.hook_attn_out"}
PADDING = torch.arange(S) < torch.arange(B)[:, None]  # before each context: causal attention alone would read it
TERMS: dict[str, Any] = {"sparsity_loss_type": "tanh-quad", "lp_coefficient": 0.1, "l1_coefficient": 0.5}


def made(**config: Any) -> Dictionary:
    return filled(kind="lorsa", **{**FIELDS, **HOOKS, "act_fn": "jumprelu", **config})


def contexts(seed: int) -> Tensor:
    return inputs(B * S, D, seed).reshape(B, S, D)


def loud(x: Tensor) -> Tensor:
    return torch.where(PADDING[..., None], 100.0, x)


def test_what_stands_at_padded_positions_does_not_change_the_loss() -> None:
    dictionary, x, y = made(), contexts(0), contexts(1)
    found = []
    for input_, label in ((x, y), (loud(x), loud(y))):
        dictionary.zero_grad()
        report = api.loss(dictionary, input_, label, padding=PADDING, **TERMS)
        report.total.backward()
        found.append((report, {name: p.grad.clone() for name, p in dictionary.named_parameters() if p.grad is not None}))
    (quiet, gradients), (noisy, others) = found
    torch.testing.assert_close(noisy.total, quiet.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(others, gradients, rtol=1e-9, atol=1e-12)
    assert set(quiet.terms) == {"l_rec", "tanh-quad", "lp"}
    masked = api.loss(dictionary, loud(x), loud(y), mask=~PADDING, **TERMS)
    assert not torch.isclose(masked.total, quiet.total)  # a masked token is read


def test_the_loss_of_padded_contexts_is_that_of_the_contexts_by_themselves() -> None:
    """Without positions in the scores: each context cut to its tokens, the mean over all of them."""
    dictionary, x, y = made(positional_embedding_type="none", rotary_dim=None), contexts(0), contexts(1)
    padded = api.loss(dictionary, loud(x), loud(y), padding=PADDING)
    alone = [api.loss(dictionary, x[i : i + 1, i:], y[i : i + 1, i:]).total * (S - i) for i in range(B)]
    torch.testing.assert_close(padded.total, sum(alone) / int((~PADDING).sum()), rtol=1e-12, atol=1e-12)  # type: ignore[operator]


def test_padding_goes_with_a_mask() -> None:
    dictionary, x, y = made(), contexts(0), contexts(1)
    mask = torch.arange(S) % 3 != 2
    report = api.loss(dictionary, loud(x), loud(y), mask=mask.expand(B, S), padding=PADDING)
    kept = mask & ~PADDING
    error = (dictionary(x, padding=PADDING) - y).square().sum(-1)[kept].mean()
    torch.testing.assert_close(report.total, error, rtol=1e-9, atol=1e-12)
    assert bool((report.codes.f[~kept] == 0).all())


@torch.no_grad()
def test_what_stands_at_padded_positions_does_not_change_the_evaluation() -> None:
    dictionary, x, y = made(), contexts(0), contexts(1)
    quiet = api.evaluate_reconstruction(dictionary, x, y, padding=PADDING, batch_size=3)
    noisy = api.evaluate_reconstruction(dictionary, loud(x), loud(y), padding=PADDING, batch_size=3)
    assert noisy == pytest.approx(quiet, rel=1e-9, abs=1e-12)
    assert quiet["evaluated_tokens"] == int((~PADDING).sum())
    label, x_hat = y[~PADDING], dictionary(x, padding=PADDING)[~PADDING]
    fvu = float((label - x_hat).square().sum() / (label - label.mean(0)).square().sum())
    assert quiet["fvu"] == pytest.approx(fvu, rel=1e-9)


def test_without_padded_positions_nothing_changes() -> None:
    dictionary, x, y = made(), contexts(0), contexts(1)
    none = torch.zeros(B, S, dtype=torch.bool)
    torch.testing.assert_close(
        api.loss(dictionary, x, y, padding=none, **TERMS).total,
        api.loss(dictionary, x, y, **TERMS).total,
        rtol=1e-12,
        atol=1e-12,
    )


def test_padding_that_makes_no_sense_is_refused() -> None:
    x = contexts(0)
    calls = (api.loss, api.evaluate_reconstruction)
    for call in calls:
        with pytest.raises(ParamsError, match=saying("padding:", "dictionary.kind 'sae'", "mask")):
            call(filled(), x, padding=PADDING)
        with pytest.raises(DataError, match=saying("padding:", "torch.int64", "padding.bool()")):
            call(made(), x, x, padding=PADDING.long())
        with pytest.raises(DataError, match=saying("padding:", "[4, 9]", "got [4, 8]")):
            call(made(), x, x, padding=PADDING[:, 1:])
