"""The end of every family: what a direction adds to the logits, against the model's own logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pipeline.lm.language_model import LanguageModel
from tests.lm.conftest import CONFIGURATIONS, LAYERS, VOCAB, D


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "huggingface") for name in CONFIGURATIONS), ("llama", "transformer_lens"), ("gpt2", "transformer_lens")],
)
def test_logits_are_the_attribution_of_the_last_residual_over_its_scale(
    name: str, backend: str, language_model: Callable[[str, str], LanguageModel], token_ids: torch.Tensor
) -> None:
    model = language_model(name, backend)
    hook = f"blocks.{LAYERS - 1}.hook_resid_post"
    x = model.activations(token_ids, [hook])[hook].double()
    end = model.unembedding()
    centred = x - x.mean(-1, keepdim=True) if end.centred else x
    scale = (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    found = end.logits((x / scale).reshape(-1, D).float()).reshape(*token_ids.shape, VOCAB)
    wanted = model.logits(token_ids)
    rest = wanted - found  # the biases of norm and head: the same for every token
    assert float((rest - rest[:1, :1]).abs().max()) < 1e-4 * float(wanted.abs().max())
    assert float((wanted - wanted[:1, :1]).abs().max()) > 0.1
