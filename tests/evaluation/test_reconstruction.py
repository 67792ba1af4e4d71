from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pipeline.errors import NumericsError
from pipeline.evaluation.reconstruction import LabelMean, ReconstructionMetrics
from tests.evaluation import naive
from tests.messages import saying


def _data(n: int, d: int, seed: int, offset: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=rng) + offset
    return x, 0.8 * x + 0.3 * torch.randn(n, d, generator=rng)


def _stream(x, r, mask, sizes, hook="h"):
    mean = LabelMean()
    bounds = np.cumsum([0, *sizes])
    for a, b in itertools.pairwise(bounds):
        mean.update(x[a:b], mask[a:b])
    metrics = ReconstructionMetrics({hook: mean.value(hook)})
    for a, b in itertools.pairwise(bounds):
        metrics.update({hook: r[a:b]}, {hook: x[a:b]}, mask[a:b])
    return metrics


def test_every_metric_equals_the_naive_one_with_unequal_masks_and_batches():
    x, r = _data(101, 7, seed=0)
    mask = torch.ones(101, dtype=torch.bool)
    mask[:40] = torch.arange(40) % 5 == 0
    got = _stream(x, r, mask, [40, 3, 58]).results()
    want = naive.reconstruction(x[mask].numpy(), r[mask].numpy())
    assert got.keys() == want.keys() | {"normalized_error_q50", "fvu_massive_share"}
    assert got["fvu_massive_share"] == pytest.approx(0.0, abs=1e-12)  # no token is massive
    assert got["normalized_error_q50"] == pytest.approx(naive.normalized_error_q50(x[mask].numpy(), r[mask].numpy()), rel=1e-3)
    for name in want:
        assert got[name] == pytest.approx(want[name], rel=1e-9), name


def test_tokens_weigh_the_same_whatever_batch_they_are_in():
    x, r = _data(60, 5, seed=1)
    mask = torch.rand(60, generator=torch.Generator().manual_seed(2)) < 0.5
    first, second = _stream(x, r, mask, [60]).results(), _stream(x, r, mask, [1, 7, 50, 2]).results()
    for name, value in first.items():
        assert second[name] == pytest.approx(value, rel=1e-12), name


def test_masked_tokens_may_hold_anything():
    x, r = _data(20, 4, seed=3)
    mask = torch.ones(20, dtype=torch.bool)
    mask[[3, 9]] = False
    want = _stream(x, r, mask, [20]).results()
    x[3], r[9] = torch.nan, torch.inf
    assert _stream(x, r, mask, [20]).results() == want


def test_fvu_of_hand_sized_labels():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])  # mean (1, 0): total variance 2
    r = torch.tensor([[0.0, 0.0], [1.0, 0.0]])  # squared error 1
    got = _stream(x, r, torch.ones(2, dtype=torch.bool), [2]).results()
    assert got["fvu"] == 0.5
    assert got["explained_variance"] == 0.5
    assert got["explained_variance_legacy"] == 0.5  # (1 + 0) / 2
    assert got["mse"] == 0.5
    assert got["l2_ratio"] == 0.5  # the zero label has no ratio
    assert got["relative_reconstruction_bias"] == 0.5


def test_a_large_common_offset_costs_no_precision():
    x, r = _data(500, 6, seed=4, offset=0.0)
    x, r = x.double() + 1e6, r.double() + 1e6
    got = _stream(x, r, torch.ones(500, dtype=torch.bool), [100] * 5).results()
    want = naive.reconstruction(x.numpy() - 1e6, r.numpy() - 1e6)
    assert got["fvu"] == pytest.approx(want["fvu"], rel=1e-7)


def test_several_hook_points_add_numerators_and_denominators():
    pairs = {"a": _data(30, 4, seed=5), "b": _data(30, 6, seed=6, offset=-1.0)}
    means = {}
    for hook, (x, _) in pairs.items():
        mean = LabelMean()
        mean.update(x)
        means[hook] = mean.value(hook)
    metrics = ReconstructionMetrics(means)
    metrics.update({h: r for h, (_, r) in pairs.items()}, {h: x for h, (x, _) in pairs.items()})
    got = metrics.results()
    each = {h: naive.reconstruction(x.numpy(), r.numpy()) for h, (x, r) in pairs.items()}
    error = {h: float(((x - r).double() ** 2).sum()) for h, (x, r) in pairs.items()}
    spread = {h: float(((x - x.double().mean(0)).double() ** 2).sum()) for h, (x, _) in pairs.items()}
    assert got["fvu"] == pytest.approx(sum(error.values()) / sum(spread.values()), rel=1e-6)
    assert got["mse"] == pytest.approx((each["a"]["mse"] + each["b"]["mse"]) / 2, rel=1e-9)
    for hook in pairs:
        assert got[f"fvu.{hook}"] == pytest.approx(each[hook]["fvu"], rel=1e-9)
        assert got[f"l2_ratio.{hook}"] == pytest.approx(each[hook]["l2_ratio"], rel=1e-9)


def test_float16_labels_are_summed_in_float64():
    x, r = _data(64, 8, seed=7, offset=100.0)
    x, r = x.half(), r.half()
    got = _stream(x, r, torch.ones(64, dtype=torch.bool), [32, 32]).results()
    want = naive.reconstruction(x.numpy(), r.numpy())
    assert got["fvu"] == pytest.approx(want["fvu"], rel=1e-9)


@pytest.mark.parametrize(("which", "what"), [("label", "activation"), ("x_hat", "reconstruction")])
def test_a_non_finite_value_is_named_by_hook_point_context_and_token(which, what):
    x, r = _data(12, 4, seed=8)
    x, r = x.view(3, 4, 4), r.view(3, 4, 4)
    metrics = ReconstructionMetrics({"blocks.1.hook_resid_post": torch.zeros(4)})
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0] = False
    (x if which == "label" else r)[2, 1, 0] = torch.nan
    with pytest.raises(NumericsError, match=saying("blocks.1.hook_resid_post", "contexts 4 to 6", what, "[2, 1]")):
        metrics.update({"blocks.1.hook_resid_post": r}, {"blocks.1.hook_resid_post": x}, mask, "contexts 4 to 6")


def test_undefined_quantities():
    same = torch.ones(5, 3)
    with pytest.raises(NumericsError, match=saying("h:", "FVU", "undefined", 5)):
        _stream(same, same, torch.ones(5, dtype=torch.bool), [5]).results()
    with pytest.raises(NumericsError, match=saying("h:", "masked")):
        _stream(same, same, torch.zeros(5, dtype=torch.bool), [5])
    x, _ = _data(5, 3, seed=9)
    found = _stream(x, torch.zeros_like(x), torch.ones(5, dtype=torch.bool), [5]).results()
    assert "relative_reconstruction_bias" not in found
    assert found["nmse"] == 1.0
    assert found["fvu"] == found["zero_fvu"] > 1.0


def test_a_hook_point_without_variance_has_no_fvu_of_its_own():
    x, r = _data(5, 3, seed=9)
    metrics = ReconstructionMetrics({"a": x.double().mean(0), "b": torch.ones(3)})
    metrics.update({"a": r, "b": torch.zeros(5, 3)}, {"a": x, "b": torch.ones(5, 3)})
    found = metrics.results()
    assert "fvu.a" in found
    assert not {"fvu.b", "explained_variance.b", "zero_fvu.b", "relative_reconstruction_bias.b"} & found.keys()
    assert found["mse.b"] == 3.0
