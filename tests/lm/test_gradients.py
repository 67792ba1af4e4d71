"""Runs whose logits are differentiated in what is put in the place of an activation."""

from __future__ import annotations

import pytest
import torch

from pipeline.lm.language_model import Start
from pipeline.seeding import generator


@pytest.mark.parametrize(
    ("family", "backend"),
    [("gpt_neox", "huggingface"), ("gpt2", "huggingface"), ("llama", "huggingface"), ("gpt_neox", "transformer_lens")],
)
def test_logits_are_differentiable_in_what_is_put_in(family, backend, language_model, token_ids):
    """Against finite differences of the run without gradients; the same from the block on as from the tokens."""
    model = language_model(family, backend)
    hook, residual = "blocks.1.hook_mlp_out", "blocks.1.hook_resid_pre"
    known = model.activations(token_ids, [residual, hook])
    draw = generator(0, "tests", "gradient")
    weights = torch.randn(model.logits(token_ids).shape, generator=draw)
    direction = torch.randn(known[hook].shape, generator=draw)
    found = []
    for start in (None, Start(1, known[residual], known)):
        x = known[hook].clone().requires_grad_()
        logits = model.logits(token_ids, {hook: lambda captured, original, x=x: x}, capture=(), start=start, gradient=True)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), x)
        found.append(gradient)

    def value(scale):
        with torch.enable_grad():
            logits = model.logits(token_ids, {hook: lambda captured, original: original + scale * direction})
        assert not logits.requires_grad
        return float((logits.double() * weights).sum())

    step = 1e-2
    assert float((found[0] * direction).sum()) == pytest.approx((value(step) - value(-step)) / (2 * step), rel=2e-2)
    torch.testing.assert_close(found[0], found[1])


def test_the_models_weights_are_frozen(language_model, token_ids):
    model = language_model("gpt_neox", "huggingface")
    assert not any(parameter.requires_grad for parameter in model._model.parameters())
    assert not model.logits(token_ids, gradient=True).requires_grad
