"""Runs that begin at a block: the logits of a whole run bit for bit, without the blocks before it."""

from __future__ import annotations

import pytest
import torch

from pipeline.lm.language_model import Start
from tests.lm.conftest import CONFIGURATIONS, OLDEST
from tests.lm.families import LAYERS

SITES = ("hook_resid_pre", "ln1.hook_normalized", "hook_attn_out", "ln2.hook_out", "hook_mlp_out", "hook_resid_post")
# What a run must take over from the model around its blocks, differs from family to family: all of those in one back end.
RUN = [*((family, "huggingface") for family in CONFIGURATIONS), *((family, "transformer_lens") for family in OLDEST)]


def louder(captured, original):
    return 1.5 * original + 0.1


def starts(model, token_ids, layer):
    exist = set(model.hook_points())
    names = [name for later in range(layer, LAYERS) for site in SITES if (name := f"blocks.{later}.{site}") in exist]
    known = model.activations(token_ids, names)
    return Start(layer, known[f"blocks.{layer}.hook_resid_pre"], known)


@pytest.mark.parametrize(
    ("family", "backend"),
    [*RUN, *((window, "huggingface") for window in ("mistral_window", "qwen2_window"))],
)
def test_the_same_logits_from_every_block(family, backend, language_model, token_ids):
    model = language_model(family, backend)
    before = model.logits(token_ids)
    # Of every family from one block; of those whose blocks differ in shape the least, from all of them.
    for layer in range(LAYERS) if family in OLDEST else (1,):
        start = starts(model, token_ids, layer)
        assert torch.equal(model.logits(token_ids, start=start), before)
        for site in SITES:
            for later in range(layer, LAYERS):
                if f"blocks.{later}.{site}" not in model.hook_points():
                    continue
                replace = {f"blocks.{later}.{site}": louder}
                whole = model.logits(token_ids, replace, capture=())
                assert torch.equal(model.logits(token_ids, replace, capture=(), start=start), whole), (layer, later, site)
    assert torch.equal(model.logits(token_ids), before)  # nothing is left behind


def test_blocks_before_the_start_are_not_run(language_model, token_ids):
    model = language_model("gpt_neox", "huggingface")
    start = starts(model, token_ids, 1)
    ran = []
    parts = [block.attention for block in model._blocks]
    handles = [part.register_forward_hook(lambda *_, layer=layer: ran.append(layer)) for layer, part in enumerate(parts)]
    try:
        model.logits(token_ids, {"blocks.1.hook_mlp_out": louder}, capture=(), start=start)
        assert ran == [1, 2]
        ran.clear()
        model.logits(token_ids, {"blocks.1.hook_resid_post": louder}, capture=(), start=start)
        assert ran == [2]  # what block 1 gives is known
        ran.clear()
        model.logits(token_ids, {"blocks.2.hook_resid_post": louder}, capture=(), start=start)
        assert ran == []
        model.logits(token_ids, {"blocks.0.hook_resid_post": louder}, capture=(), start=start)
        assert ran == [0, 1, 2]  # before the start: all of it
        ran.clear()
        model.logits(token_ids, {"blocks.2.hook_mlp_out": louder}, start=start)  # wants everything before it
        assert ran == [0, 1, 2]
    finally:
        for handle in handles:
            handle.remove()


def test_what_a_function_reads_is_that_of_the_run(language_model, token_ids):
    model = language_model("llama", "huggingface")
    start = starts(model, token_ids, 1)
    read, written = "blocks.1.ln2.hook_out", "blocks.1.hook_mlp_out"
    replace = {read: louder, written: lambda captured, original: original + captured[read]}
    whole = model.logits(token_ids, replace, capture=(read,))
    assert torch.equal(model.logits(token_ids, replace, capture=(read,), start=start), whole)


def test_blocks_run_again_after_a_failure(language_model, token_ids):
    model = language_model("gpt2", "huggingface")
    start = starts(model, token_ids, 2)

    def fail(captured, original):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        model.logits(token_ids, {"blocks.2.hook_mlp_out": fail}, capture=(), start=start)
    assert all("forward" not in block.__dict__ for block in model._blocks)
