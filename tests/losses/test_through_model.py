"""KL and cross entropy of logits and their gradients, against loops and finite differences in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.losses import through_model
from pipeline.losses.through_model import cross_entropy, divergence, with_gradient
from pipeline.seeding import generator

B, T, V = 3, 5, 7


def drawn() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits without and with the replacement, tokens and the mask of kept ones."""
    draw = generator(0, "tests", "logits")
    clean, spliced = (2 * torch.randn(B, T, V, generator=draw, dtype=torch.float64) for _ in range(2))
    tokens = torch.randint(V, (B, T), generator=draw)
    mask = torch.rand(B, T, generator=draw) < 0.7
    mask[2] = False  # a context of nothing but special tokens
    return clean, spliced, tokens, mask


def by_loops(clean: Tensor, spliced: Tensor, tokens: Tensor, mask: Tensor) -> tuple[float, float]:
    """Sums of KL and of the cross entropy over the predictions of kept tokens."""
    kl = ce = 0.0
    for b in range(B):
        for t in range(T - 1):
            if not mask[b, t + 1]:
                continue
            p, q = ([math.exp(x) for x in row[b, t].tolist()] for row in (clean, spliced))
            p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
            kl += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
            ce -= math.log(q[int(tokens[b, t + 1])])
    return kl, ce


@pytest.mark.parametrize("chunk", [1, 2 * T * V, 2**22])
def test_sums_by_loops_over_predictions_of_kept_tokens(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(through_model, "CHUNK_ENTRIES", chunk)
    clean, spliced, tokens, mask = drawn()
    kl, ce = by_loops(clean, spliced, tokens, mask)
    assert float(divergence(clean, spliced, mask)[0]) == pytest.approx(kl, rel=1e-12)
    assert float(cross_entropy(tokens, spliced, mask)[0]) == pytest.approx(ce, rel=1e-12)
    assert float(divergence(clean, clean, mask)[0]) == 0.0


@pytest.mark.parametrize("kind", ["kl", "ce"])
@pytest.mark.parametrize("chunk", [1, 2**22])
def test_gradients_by_finite_differences(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(through_model, "CHUNK_ENTRIES", chunk)
    clean, spliced, tokens, mask = drawn()
    index = ("kl", "ce").index(kind)
    found = (divergence(clean, spliced, mask), cross_entropy(tokens, spliced, mask))[index][1]
    step = 1e-6
    for b in range(B):
        for t in range(T):
            for v in range(V):
                moved = torch.zeros_like(spliced)
                moved[b, t, v] = step
                above, below = (by_loops(clean, spliced + sign * moved, tokens, mask)[index] for sign in (1, -1))
                assert float(found[b, t, v]) == pytest.approx((above - below) / (2 * step), abs=1e-7)


def test_half_precision_is_computed_in_float32() -> None:
    clean, spliced, tokens, mask = drawn()
    clean, spliced = clean.bfloat16(), spliced.bfloat16()
    kl, ce = by_loops(clean, spliced, tokens, mask)
    for (value, gradient), wanted in ((divergence(clean, spliced, mask), kl), (cross_entropy(tokens, spliced, mask), ce)):
        assert float(value) == pytest.approx(wanted, rel=1e-5)
        assert gradient.dtype == torch.bfloat16


def test_a_value_with_its_gradient_is_differentiated_by_it() -> None:
    r = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    gradient = torch.arange(12, dtype=torch.float64).reshape(4, 3)
    value = with_gradient(2 * r, torch.tensor(5.0, dtype=torch.float64), gradient)
    assert float(value.detach()) == 5.0
    (3 * value).backward()
    assert r.grad is not None
    torch.testing.assert_close(r.grad, 6 * gradient)
