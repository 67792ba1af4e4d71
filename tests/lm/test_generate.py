"""Generation with kept keys and values writes the tokens of generation without; text in, for every call."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import DataError
from pipeline.lm.splicing import token_loss
from pipeline.seeding import generator
from tests.lm.conftest import ATTENTIONS, CONFIGURATIONS
from tests.lm.families import CONTEXT, D
from tests.messages import saying

HOOK = "blocks.0.hook_resid_post"
# Their weights are random and tiny: greedy tokens of all families differ from those of a model without its past.
PROMPT = [5, 9, 11, 3, 7]


@pytest.mark.parametrize("name", [*CONFIGURATIONS, *ATTENTIONS])
def test_tokens_with_and_without_the_cache(name, language_model):
    """As it is and steered, greedy and drawn; every step's logits come from the past, which a wrong cache would change."""
    model = language_model(name, "huggingface")
    assert model.keeps_cache
    direction = 3.0 * torch.randn(D, generator=generator(0, "tests", "steered"))
    replace = {HOOK: lambda captured, x: x + direction.to(x)}
    found = {}
    for cached in (True, False):
        found[cached] = [
            model.generate(PROMPT, 12, replace=change, temperature=temperature, seed=3, cached=cached)
            for change in (None, replace)
            for temperature in (0.0, 1.5)
        ]
    assert found[True] == found[False]
    assert found[True][0] != found[True][2]  # the direction does something


def test_a_step_runs_one_token_and_the_last_ones_a_full_context(language_model, monkeypatch):
    model = language_model("llama", "huggingface")
    lengths = []
    forward = model._model.forward

    def counting(*args, **kwargs):
        lengths.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(model._model, "forward", counting)
    prompt = list(range(1, CONTEXT - 2))
    assert len(model.generate(prompt, 6, temperature=2.0, seed=1)) == 6
    assert lengths == [len(prompt), 1, 1, 1, CONTEXT, CONTEXT]


def test_behind_transformer_lens_each_step_runs_all_tokens(language_model):
    model = language_model("gpt_neox", "transformer_lens")
    assert not model.keeps_cache
    assert model.generate(PROMPT, 4) == language_model("gpt_neox", "huggingface").generate(PROMPT, 4)


def test_one_context_is_continued(language_model):
    with pytest.raises(DataError, match=saying("generate:", "one context", 2)):
        language_model("gpt2", "huggingface").generate(torch.ones(2, 3, dtype=torch.int64), 2)


def test_run_gives_what_the_single_calls_give(language_model, token_ids):
    model = language_model("gpt2", "huggingface")
    out = model.run(token_ids, hook_points=[HOOK])
    assert torch.equal(out.logits, model.logits(token_ids))
    assert torch.equal(out.loss, model.loss(token_ids))
    assert torch.equal(out.activations[HOOK], model.activations(token_ids, [HOOK])[HOOK])
    assert not out.logits.requires_grad
    start = out.activations[HOOK].clone().requires_grad_()
    run = model.run(token_ids, replace={HOOK: lambda captured, x: start}, hook_points=["blocks.1.hook_mlp_out"], gradient=True)
    assert run.loss.requires_grad
    assert run.activations["blocks.1.hook_mlp_out"].requires_grad
    with pytest.raises(DataError, match=saying("unknown hook point", "blocks.0.hook_resid_past")):
        model.run(token_ids, hook_points=["blocks.0.hook_resid_past"])


def test_the_loss_of_float64_logits_is_float64():
    logits = torch.randn(2, 5, 7, dtype=torch.float64, generator=generator(0, "tests", "logits"))
    ids = torch.tensor([[0, 1, 2, 3, 4], [6, 5, 4, 3, 2]])
    wanted = [[-float(logits[b, t].log_softmax(-1)[ids[b, t + 1]]) for t in range(4)] for b in range(2)]
    found = token_loss(logits, ids)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)
