"""The end of every family: what a direction adds to the logits, against the model's own logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pipeline.lm.language_model import LanguageModel
from tests.lm.conftest import CONFIGURATIONS
from tests.lm.families import LAYERS, VOCAB, D
from tests.lm.shapes import shape_of

CAPS = {"gemma2": 3.0}
BRIDGED = ("llama", "gpt2", "gemma2", "opt")


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "huggingface") for name in CONFIGURATIONS), *((name, "transformer_lens") for name in BRIDGED)],
)
def test_logits_are_the_attribution_of_the_last_residual_over_its_scale(
    name: str, backend: str, language_model: Callable[[str, str], LanguageModel], token_ids: torch.Tensor
) -> None:
    model, shape = language_model(name, backend), shape_of(name)
    hook = f"blocks.{LAYERS - 1}.hook_resid_post"
    x = model.activations(token_ids, [hook])[hook].double()
    end = model.unembedding()
    centred = x - x.mean(-1, keepdim=True) if end.centred else x
    scale = (centred.square().mean(-1, keepdim=True) + shape.eps).sqrt() if shape.final else 1.0
    found = end.logits((x / scale).reshape(-1, D).float()).reshape(*token_ids.shape, VOCAB)
    wanted = model.logits(token_ids)
    assert end.softcap == CAPS.get(name)
    if end.softcap is not None:
        wanted = end.softcap * torch.atanh((wanted / end.softcap).double())
    rest = wanted - found  # the biases of norm and head: the same for every token
    assert float((rest - rest[:1, :1]).abs().max()) < 1e-4 * float(wanted.abs().max())
    assert float((wanted - wanted[:1, :1]).abs().max()) > 0.1
