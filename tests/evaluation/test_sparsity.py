from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.errors import NumericsError
from pipeline.evaluation.sparsity import SparsityMetrics, histogram_quantile, quantiles
from tests.evaluation import naive
from tests.messages import saying


def _features(n: int, f: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    share = torch.logspace(-3, 0, f)
    active = torch.rand(n, f, generator=rng) < share
    active[:, 0] = False
    return torch.where(active, torch.rand(n, f, generator=rng) + 0.01, 0.0)


def test_every_metric_equals_the_naive_one():
    f = _features(500, 40, seed=0)
    mask = torch.rand(500, generator=torch.Generator().manual_seed(1)) < 0.7
    metrics = SparsityMetrics((40,))
    for start in (0, 100, 130):
        stop = {0: 100, 100: 130, 130: 500}[start]
        metrics.update(f[start:stop], mask[start:stop])
    got, want = metrics.results(), naive.sparsity(f[mask].numpy())
    assert got.keys() == want.keys()
    for name in want:
        assert got[name] == pytest.approx(want[name], rel=1e-9), name
    assert np.allclose(metrics.density().numpy(), (f[mask] > 0).double().mean(0).numpy(), rtol=1e-12)
    active = f[mask].double()
    mean = active.sum(0) / (active > 0).sum(0).clamp_min(1)
    assert torch.allclose(metrics.mean_when_active(), mean, rtol=1e-12)


def test_rare_features_are_counted_at_their_bounds():
    """One activation in 20,000 tokens: rare, but neither dead nor below 1e-5; a feature without any is below every bound."""
    f = torch.zeros(20_000, 3)
    f[:, 0], f[7, 1] = 1.0, 1.0
    metrics = SparsityMetrics((3,))
    metrics.update(f)
    got = metrics.results()
    assert (got["dead_features"], got["dead_fraction"]) == (1.0, pytest.approx(1 / 3))
    assert [got[f"features_below_{bound}"] for bound in ("1e-5", "1e-6", "1e-7")] == [1.0, 1.0, 1.0]
    metrics = SparsityMetrics((2,))
    f = torch.zeros(2**18, 2)
    f[0, 0] = 1.0  # 3.8e-6
    metrics.update(f)
    got = metrics.results()
    assert [got[f"features_below_{bound}"] for bound in ("1e-5", "1e-6", "1e-7")] == [2.0, 1.0, 1.0]


def test_features_of_several_layers_count_together():
    f = _features(50, 24, seed=2).view(50, 3, 8)
    layered, flat = SparsityMetrics((3, 8)), SparsityMetrics((24,))
    layered.update(f)
    flat.update(f.view(50, 24))
    assert layered.results() == flat.results()
    named = SparsityMetrics((3, 8), ("a", "b", "c"))
    named.update(f)
    for layer, name in enumerate("abc"):
        assert named.results()[f"l0_mean.{name}"] == pytest.approx(float((f[:, layer] > 0).sum(1).double().mean()))
        dead = float((f[:, layer] == 0).all(0).double().mean())
        assert named.results()[f"dead_fraction.{name}"] == pytest.approx(dead)
        own = SparsityMetrics((8,))
        own.update(f[:, layer])
        for key in ("dense_fraction", "l0_q05", "l0_q50", "l0_q95"):
            assert named.results()[f"{key}.{name}"] == own.results()[key]
    assert layered.density().shape == (3, 8)


def test_sequences_are_flattened_to_tokens():
    f = _features(30, 8, seed=3)
    mask = torch.arange(30) % 3 != 0
    a, b = SparsityMetrics((8,)), SparsityMetrics((8,))
    a.update(f, mask)
    b.update(f.view(5, 6, 8), mask.view(5, 6))
    assert a.results() == b.results()


def test_histogram_counts_every_feature_once_on_a_log10_axis():
    f = torch.zeros(1000, 4)
    f[:, 1] = 1.0  # density 1: the last bin
    f[:100, 2] = 1.0  # density 0.1
    f[0, 3] = 1.0  # density 0.001
    metrics = SparsityMetrics((4,))
    metrics.update(f)
    histogram = metrics.histogram()
    assert histogram.never == 1
    assert sum(histogram.counts) == 3
    assert len(histogram.edges) == len(histogram.counts) + 1
    assert (histogram.edges[0], histogram.edges[-1]) == (-7.0, 0.0)
    filled = [histogram.edges[i] for i, count in enumerate(histogram.counts) if count]
    assert filled[-1] == pytest.approx(-0.1)
    assert filled[0] == pytest.approx(-3.0, abs=0.1001)


@pytest.mark.parametrize("values", [[0], [3, 3, 3], [0, 1], [5, 0, 2, 2, 9, 1, 1], list(range(50))])
@pytest.mark.parametrize("q", [0.0, 0.05, 0.25, 0.5, 0.77, 1.0])
def test_quantiles_are_numpys(values, q):
    counts = torch.bincount(torch.tensor(values))
    want = float(np.quantile(values, q))
    assert histogram_quantile(counts, q) == pytest.approx(want)
    (got,) = quantiles(torch.tensor(values, dtype=torch.float32), "x", (q,)).values()
    assert got == pytest.approx(want)


def test_nothing_to_count_is_an_error():
    metrics = SparsityMetrics((4,))
    with pytest.raises(NumericsError, match=saying("no token", "masked")):
        metrics.results()
    metrics.update(torch.tensor([[torch.inf, 0.0, 0.0, 0.0]]))
    with pytest.raises(NumericsError, match="not finite"):
        metrics.results()
