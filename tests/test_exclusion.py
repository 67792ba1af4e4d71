"""Which tokens are left out: cases by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.norms.exclusion import MASSIVE_FACTOR, NormLimits, lengths, median_norm
from pipeline.norms.hook_norm import HookNorm

A, B, C = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "tuned:blocks.0.hook_resid_post"


def long(*norms: float) -> torch.Tensor:
    """[n, 2] of the stated norms, in several directions."""
    return torch.tensor([[n * math.cos(i), n * math.sin(i)] for i, n in enumerate(norms)], dtype=torch.float64)


def test_lengths_are_taken_in_float32_at_least() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert lengths(x).tolist() == [5.0, 0.0]
    wide = torch.full((2, 4), 200.0, dtype=torch.float16)  # the squares overflow float16
    assert lengths(wide).dtype == torch.float32
    assert lengths(wide).tolist() == [400.0, 400.0]
    assert lengths(x.double()).dtype == torch.float64


def test_median_norm_by_hand() -> None:
    x = long(1.0, 5.0, 3.0, 2.0, 100.0)
    assert median_norm(x) == pytest.approx(3.0)
    assert median_norm(x[:4]) == pytest.approx(2.0)  # the lower of two middle ones
    assert median_norm(x, torch.tensor([True, True, False, False, True])) == pytest.approx(5.0)
    assert median_norm(x.reshape(5, 1, 2), torch.tensor([[True], [False], [False], [False], [False]])) == pytest.approx(1.0)
    x[2, 0] = math.nan
    x[3:, 1] = math.inf
    assert median_norm(x) == pytest.approx(1.0)  # of 1 and 5


def test_there_is_no_median_of_nothing_or_of_zeros() -> None:
    assert median_norm(torch.zeros(5, 2)) is None
    assert median_norm(long(0.0, 0.0, 0.0, 7.0)) is None
    assert median_norm(long(1.0), torch.tensor([False])) is None
    assert median_norm(torch.full((3, 2), math.nan)) is None


def test_limits_are_those_of_the_rule_or_of_massive_tokens() -> None:
    norms = {
        A: HookNorm(1.0, None, 2, median_norm=2.0, max_norm_factor=4.0),
        B: HookNorm(1.0, None, 2, median_norm=3.0),
        C: HookNorm(1.0, None, 2, max_norm_factor=4.0),  # a median of 0 is none
    }
    assert MASSIVE_FACTOR == 10.0
    assert dict(NormLimits.excluded(norms).limits) == {A: 8.0}
    assert dict(NormLimits.massive(norms).limits) == {A: 8.0, B: 30.0}
    assert dict(NormLimits.excluded({}).limits) == {}


def test_a_token_above_any_limit_is_left_out() -> None:
    limits = NormLimits({A: 8.0, B: 30.0})
    found = {A: long(8.0, 8.1, 1.0, 9.0), B: long(1.0, 1.0, 31.0, 99.0), C: long(1e9, 1e9, 1e9, 1e9)}
    found[A][0] = torch.tensor([8.0, 0.0])  # at the limit, which is not above it
    above = limits.above(found)
    assert above is not None
    assert above.tolist() == [False, True, True, True]
    kept = limits.kept(found)
    assert kept is not None
    assert kept.tolist() == [True, False, False, False]
    mask = torch.tensor([False, True, True, False])
    masked = limits.kept({A: found[A]}, mask)
    assert masked is not None
    assert masked.tolist() == [False, False, True, False]
    assert mask.tolist() == [False, True, True, False]


def test_contexts_are_masked_token_by_token() -> None:
    limits = NormLimits({A: 8.0})
    x = long(1.0, 9.0, 2.0, 3.0, 4.0, 10.0).reshape(2, 3, 2)
    kept = limits.kept({A: x})
    assert kept is not None
    assert kept.tolist() == [[True, False, True], [True, True, False]]


def test_without_tokens_above_or_without_limits_the_mask_is_the_one_given() -> None:
    mask = torch.tensor([True, False])
    found = {A: long(1.0, 2.0)}
    for limits in (NormLimits(), NormLimits({A: 8.0}), NormLimits({B: 0.5})):
        assert limits.kept(found, mask) is mask
        assert limits.kept(found) is None
    assert NormLimits().above(found) is None
    assert NormLimits({B: 0.5}).above(found) is None
    assert NormLimits({A: 8.0}).kept({A: long(9.0, 1.0)}, torch.tensor([False, False])).tolist() == [False, False]  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shortened_rows_keep_their_direction_and_the_others_their_values(dtype: torch.dtype) -> None:
    x = long(1.0, 80.0, 8.0, 0.0, 2400.0).to(dtype)
    x[2] = torch.tensor([8.0, 0.0])
    found = NormLimits({A: 8.0}).shortened(A, x, 6.0)
    assert found.dtype == dtype
    assert torch.equal(found[[0, 2, 3]], x[[0, 2, 3]])
    for row in (1, 4):
        wanted = x[row].double() / x[row].double().norm() * 6.0
        torch.testing.assert_close(found[row].double(), wanted, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=0)
    assert NormLimits({A: 8.0}).shortened(B, x, 6.0) is x
