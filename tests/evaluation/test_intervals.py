"""Intervals over documents against sums by hand, the normal approximation, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.evaluation.intervals import DocumentSums, ratio_interval, with_interval
from pipeline.evaluation.reconstruction import ReconstructionMetrics
from pipeline.seeding import generator


def test_sums_of_documents_that_come_in_parts() -> None:
    values, documents = torch.arange(1.0, 13.0), torch.tensor([0, 0, 0, 2, 2, 2, 2, 5, 5, 0, 5, 2])
    sums = DocumentSums()
    for part in (slice(0, 3), slice(3, 3), slice(3, 12)):
        sums.add("x", values[part], documents[part])
    sums.add("short", torch.ones(1), torch.tensor([1]))
    by_hand = [sum(float(v) for v, d in zip(values, documents, strict=True) if d == i) for i in range(6)]
    x, short = sums.of("x", "short")
    assert x.tolist() == by_hand
    assert short.tolist() == [0, 1, 0, 0, 0, 0]
    both = DocumentSums()
    both.add_all(sums)
    both.add_all(sums)
    assert both.of("x")[0].tolist() == [2 * v for v in by_hand]


def test_the_interval_of_many_documents_is_the_normal_one() -> None:
    draw = generator(0, "tests", "intervals")
    sizes = torch.randint(20, 200, (600,), generator=draw).double()
    means = 3.0 + 0.5 * torch.randn(600, generator=draw, dtype=torch.float64)
    low, high = ratio_interval(means * sizes, sizes) or (0.0, 0.0)
    ratio = float((means * sizes).sum() / sizes.sum())
    residual = sizes * (means - ratio)
    error = math.sqrt(float(residual.square().sum())) / float(sizes.sum())
    assert low == pytest.approx(ratio - 1.96 * error, abs=0.25 * error)
    assert high == pytest.approx(ratio + 1.96 * error, abs=0.25 * error)


def test_it_holds_the_truth_about_as_often_as_it_says() -> None:
    rng, held, n = np.random.default_rng(1), 0, 120
    for trial in range(n):
        sizes = rng.integers(30, 300, 60).astype(float)
        means = 2.0 + 0.4 * rng.standard_normal(60)
        found = ratio_interval(torch.from_numpy(means * sizes), torch.from_numpy(sizes), seed=trial)
        assert found is not None
        held += found[0] <= 2.0 <= found[1]
    assert 0.87 * n <= held <= 0.995 * n


def test_one_document_has_no_interval() -> None:
    assert ratio_interval(torch.tensor([2.0, 0.0]).double(), torch.tensor([1.0, 0.0]).double()) is None
    assert with_interval("fvu", None) == {}
    assert with_interval("fvu", (0.1, 0.2)) == {"fvu_low": 0.1, "fvu_high": 0.2}


def test_fvu_has_the_interval_of_its_documents() -> None:
    draw = generator(0, "tests", "interval of FVU")
    x, r = torch.randn(40, 3, generator=draw), torch.randn(40, 3, generator=draw)
    documents, mask = torch.arange(40) // 7, torch.arange(40) % 5 != 0
    metrics = ReconstructionMetrics({"a": x[mask].double().mean(0), "b": torch.zeros(3)})
    for rows in (slice(0, 13), slice(13, 40)):
        x_hats, labels = {"a": r[rows], "b": x[rows]}, {"a": x[rows], "b": r[rows]}
        metrics.update(x_hats, labels, mask[rows], "", documents[rows])
    found = metrics.results()
    error, spread = torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for i in range(40):
        if mask[i]:
            error[documents[i]] += float((x[i].double() - r[i].double()).square().sum())
            spread[documents[i]] += float((x[i].double() - x[mask].double().mean(0)).square().sum())
    low, high = ratio_interval(error, spread) or (0.0, 0.0)
    assert (found["fvu_low.a"], found["fvu_high.a"]) == pytest.approx((low, high))
    assert low < found["fvu.a"] < high
    assert found["fvu_low"] < found["fvu"] < found["fvu_high"]
