"""A run by hand: keeping, replacing, stopping; and the loss on numbers that can be checked by eye."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.lm.splicing import Captured, Run, StopRun, token_loss


def test_a_run_keeps_what_it_replaced_and_stops():
    a, b = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    run = Run(frozenset({"a", "b"}), {"a": lambda captured, original: original + 2}, stop=True)
    assert torch.equal(run.visit("a", a), a + 2)
    with pytest.raises(StopRun):
        run.visit("b", b)
    assert torch.equal(run.captured["a"], a + 2)
    assert run.captured["b"] is b
    assert run.visit("c", b) is b
    assert list(run.captured) == ["a", "b"]


def test_a_norm_changes_by_the_gain_times_the_change():
    n = torch.tensor([[[1.0, 2.0]]])
    y = torch.tensor([[[10.0, 20.0]]])
    name = "ln.hook_normalized"
    run = Run(replace={name: lambda captured, original: original + torch.tensor([1.0, 0.0])})
    assert run.visit_normalized(name, lambda: n, y, torch.tensor([3.0, 5.0])).tolist() == [[[13.0, 20.0]]]
    assert run.visit_normalized(name, n, y, None).tolist() == [[[11.0, 20.0]]]
    untouched = Run()
    assert untouched.visit_normalized(name, n, y, None) is y


def test_captured_values_are_computed_once_and_only_when_asked_for():
    calls = []
    captured = Captured()
    captured.put("x", lambda: calls.append(1) or torch.ones(1))
    assert list(captured) == ["x"]
    assert calls == []
    assert captured["x"] is captured["x"]
    assert calls == [1]
    assert len({**captured}) == 1
    with pytest.raises(KeyError):
        captured["y"]


@pytest.mark.parametrize("max_elements", [1, 7, 10**6])
def test_token_loss(max_elements):
    logits = torch.zeros(3, 2, 4, dtype=torch.bfloat16)
    logits[1, 0, 3] = math.log(3.0)
    ids = torch.tensor([[0, 1], [0, 3], [0, 0]])
    loss = token_loss(logits, ids, max_elements=max_elements)
    assert loss.dtype == torch.float32
    assert loss.shape == (3, 1)
    assert loss.flatten().tolist() == pytest.approx([math.log(4), math.log(2), math.log(4)], rel=1e-2)
    assert token_loss(logits[:, :1], ids[:, :1]).shape == (3, 0)
