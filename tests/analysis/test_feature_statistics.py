"""Counts, co-activation, neighbours and hashes against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.analysis.active import ActiveFeatures
from pipeline.analysis.coactivation import CoactivationSample
from pipeline.analysis.decoder_neighbours import decoder_neighbours, decoder_rows, written_cosines
from pipeline.analysis.feature_counts import BINS, FeatureCounts, histogram_edges
from pipeline.analysis.hashing import BITS, hashed
from pipeline.analysis.writing import activation_thresholds
from pipeline.dictionaries.build import build_dictionary
from pipeline.seeding import generator

N, T, F = 12, 7, 19


def activations() -> Tensor:
    draw = generator(0, "tests", "statistics")
    f = torch.randn(N, T, F, generator=draw).clamp_min(0.0) * 10.0 ** torch.randn(F, generator=draw)
    f[..., 3] = 0.0
    f[0, 0, 5], f[0, 1, 5] = 1e-30, 1e30  # beyond the edges
    return f


@pytest.mark.parametrize("cuts", [1, 5])
def test_counts_are_those_of_loops(cuts: int) -> None:
    f, counts = activations(), FeatureCounts(F)
    for part in f.tensor_split(cuts):
        counts.add_sums(counts.update(ActiveFeatures.of(part), part.shape[0] * part.shape[1]))
    edges = histogram_edges()
    assert counts.tokens == N * T
    for feature in range(F):
        values = [float(v) for v in f[..., feature].flatten() if v > 0]
        assert int(counts.active[feature]) == len(values)
        assert float(counts.largest[feature]) == max(values, default=0.0)
        assert float(counts.sums[feature]) == pytest.approx(math.fsum(values), rel=1e-12)
        assert float(counts.squares[feature]) == pytest.approx(math.fsum(v * v for v in values), rel=1e-12)
        expected = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
        assert counts.histogram[feature].tolist() == expected.tolist()
    assert len(edges) == BINS + 1


def jaccard(f: Tensor, i: int, j: int) -> float:
    both = either = 0
    for row in f.flatten(0, 1):
        both += bool(row[i] > 0 and row[j] > 0)
        either += bool(row[i] > 0 or row[j] > 0)
    return both / either if either else 0.0


def test_coactivation_is_that_of_loops() -> None:
    f = activations()
    f[:, :, 7] = f[:, :, 8]
    sample = CoactivationSample(F, share=1.0)
    sample.update(ActiveFeatures.of(f[:5]), torch.arange(5))
    sample.update(ActiveFeatures.of(f[5:]), torch.arange(5, N))
    found, index = sample.neighbours(4, block=6)
    for i in range(F):
        expected = sorted((jaccard(f, i, j) for j in range(F) if j != i), reverse=True)[:4]
        assert index[i].tolist() == pytest.approx(expected, rel=1e-6)
        for j, value in zip(found[i].tolist(), index[i].tolist(), strict=True):
            assert j == -1 if value == 0 else jaccard(f, i, j) == pytest.approx(value, rel=1e-6)
    assert found[7, 0] == 8
    assert found[3].tolist() == [-1] * 4
    assert sample.tokens == int((f.flatten(0, 1) > 0).any(1).sum())


def test_large_work_is_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = CoactivationSample(F, share=1.0)
    sample.update(ActiveFeatures.of(activations()), torch.arange(N))
    whole = sample.neighbours(5)
    monkeypatch.setattr("pipeline.analysis.coactivation.MAX_PAIRS", 37)
    for one, other in zip(whole, sample.neighbours(5, block=3), strict=True):
        assert torch.equal(one, other)


def test_the_sample_is_bounded_and_does_not_depend_on_the_order() -> None:
    f = activations()
    one, other = CoactivationSample(F, 0.9, max_pairs=200), CoactivationSample(F, 0.9, max_pairs=200)
    one.update(ActiveFeatures.of(f), torch.arange(N))
    for i in reversed(range(N)):
        other.update(ActiveFeatures.of(f[i : i + 1]), torch.tensor([i]))
    assert one.limit == other.limit < round(0.9 * 2**BITS)
    assert 0 < len(one.state()["feature"]) <= 200
    for x, y in zip(one.neighbours(3), other.neighbours(3), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("kind", ["sae", "clt", "crosscoder"])
def test_decoder_neighbours_are_those_of_concatenated_rows(kind: str) -> None:
    config = {"kind": kind, "d_in": 6, "d_sae": 11, "act_fn": "relu"}
    if kind == "sae":
        config |= {"hook_point_in": "blocks.0.hook_resid_post", "hook_point_out": "blocks.0.hook_resid_post"}
    else:
        names = ("ln2.hook_out", "hook_mlp_out") if kind == "clt" else ("hook_resid_post",) * 2
        config |= {
            f"hook_points_{side}": [f"blocks.{layer}.{name}" for layer in range(3)]
            for side, name in zip(("in", "out"), names, strict=True)
        }
    dictionary = build_dictionary(config, seed=0)
    rows = decoder_rows(dictionary)
    found, cosine = decoder_neighbours(rows, 3, block=5)
    joined = torch.cat(rows, 1).double().numpy()
    for i in range(len(joined)):
        all_cosines = [
            -math.inf if j == i else float(joined[i] @ joined[j] / np.linalg.norm(joined[i]) / np.linalg.norm(joined[j]))
            for j in range(len(joined))
        ]
        assert cosine[i].tolist() == pytest.approx(sorted(all_cosines, reverse=True)[:3], abs=1e-6)
        assert [all_cosines[j] for j in found[i].tolist()] == pytest.approx(cosine[i].tolist(), abs=1e-6)


def test_more_neighbours_than_features() -> None:
    found, cosine = decoder_neighbours([torch.eye(3)], 5)
    assert found[0].tolist()[2:] == [-1, -1, -1]
    assert cosine[0].tolist() == [0.0] * 5
    assert decoder_neighbours([torch.eye(3)], 0)[0].shape == (3, 0)


def splitmix(x: int) -> int:
    mask = 2**64 - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_hashes_are_those_of_whole_numbers_and_uniform() -> None:
    a, b = torch.arange(50)[:, None] * 977, torch.arange(40)
    got = hashed(a, b, 11)
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15 - 0  # the increment of splitmix64
    for i in (0, 7, 49):
        for j in (0, 3, 39):
            inner = splitmix((int(a[i, 0]) * golden + 11) & mask)
            assert int(got[i, j]) == splitmix((inner + j * golden) & mask) >> (64 - BITS)
    assert abs(float(got.double().mean()) / 2**BITS - 0.5) < 0.02
    assert len(got.unique()) == got.numel()


@pytest.mark.parametrize("with_norm", [True, False])
def test_the_threshold_is_one_of_activations(with_norm: bool) -> None:
    config = {"kind": "sae", "hook_point_in": "blocks.0.hook_resid_post", "d_in": 6, "d_sae": 9, "act_fn": "jumprelu"}
    made = build_dictionary({**config, "sparsity_include_decoder_norm": with_norm}, seed=3)
    draw = generator(0, "tests", "thresholds")
    with torch.no_grad():
        made.get_parameter("log_jumprelu_threshold").copy_(torch.randn(9, generator=draw) - 1.0)
        made.get_parameter("W_D").mul_(torch.rand(9, 1, generator=draw) + 0.5)
        f = made.encode(3.0 * torch.randn(4000, 6, generator=draw))
    thresholds = activation_thresholds(made)
    assert thresholds is not None
    smallest = torch.where(f > 0, f, torch.inf).amin(0)
    assert (smallest > thresholds * (1 - 1e-5)).all()
    assert (smallest < thresholds + 0.05).all()


def test_cosines_of_what_a_feature_writes_at_two_hook_points() -> None:
    rows = [
        torch.tensor([[2.0, 0.0], [0.0, 0.0]]),
        torch.tensor([[0.0, 3.0], [1.0, 0.0]]),
        torch.tensor([[-1.0, 0.0], [1.0, 1.0]]),
    ]
    found = written_cosines(rows)
    assert found is not None
    assert found[0].tolist() == [0.0, -1.0, 0.0]  # (0, 1), (0, 2), (1, 2)
    assert found[1].isnan().tolist() == [True, True, False]
    assert float(found[1, 2]) == pytest.approx(2**-0.5)
    assert written_cosines(rows[:1]) is None
