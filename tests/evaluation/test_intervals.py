"""Intervals over documents against sums by hand, the normal approximation, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.evaluation.intervals import DocumentSums, ratio_interval, with_interval
from pipeline.evaluation.reconstruction import ReconstructionMetrics
from pipeline.evaluation.split_tokens import whole_documents
from pipeline.extent import FEW_DOCUMENTS, Extent, interval_note
from pipeline.seeding import generator
from tests.messages import says


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


def test_files_are_drawn_whole_and_not_their_pieces() -> None:
    """12 files of 15 pieces: texts of one file are alike. Against a bootstrap over files with numpy, and the standard error that is
    known here; drawn by pieces the interval would be a third as long."""
    rng = np.random.default_rng(5)
    files = np.repeat(np.arange(12), 15)[rng.permutation(180)]
    sizes, level = rng.integers(50, 150, 180), rng.standard_normal(12)
    documents = torch.from_numpy(np.repeat(whole_documents(files.astype(np.int32)), sizes))
    values = np.repeat(2.0 + 0.5 * level[files] + 0.3 * rng.standard_normal(180), sizes) + rng.standard_normal(sizes.sum())
    sums = DocumentSums()
    for rows in np.array_split(np.arange(len(values)), 7):
        sums.add("value", torch.from_numpy(values[rows]), documents[rows])
        sums.add("number", torch.ones(len(rows)), documents[rows])
    low, high = ratio_interval(*sums.of("value", "number")) or (0.0, 0.0)
    of_token = np.repeat(files, sizes)
    each = [values[of_token == file] for file in range(12)]
    drawn = []
    for _ in range(4000):
        chosen = [each[file] for file in rng.integers(12, size=12)]
        drawn.append(sum(part.sum() for part in chosen) / sum(len(part) for part in chosen))
    length = np.quantile(drawn, 0.975) - np.quantile(drawn, 0.025)
    assert (low, high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.06 * length)
    means = np.array([part.mean() for part in each])
    assert high - low == pytest.approx(2 * 1.96 * means.std(ddof=1) / math.sqrt(12), rel=0.15)
    pieces = DocumentSums()
    pieces.add("value", torch.from_numpy(values), torch.from_numpy(np.repeat(np.arange(180), sizes)))
    pieces.add("number", torch.ones(len(values)), torch.from_numpy(np.repeat(np.arange(180), sizes)))
    narrow = ratio_interval(*pieces.of("value", "number")) or (0.0, 0.0)
    assert narrow[1] - narrow[0] < 0.5 * (high - low)


def test_of_few_documents_an_interval_is_said_to_be_rough() -> None:
    """It is: of 5 documents it misses the truth three times as often as it says, of FEW_DOCUMENTS not much more often."""
    rng = np.random.default_rng(3)

    def missed(n: int) -> float:
        drawn = rng.standard_normal((1500, n))
        again = np.stack([drawn[:, rng.integers(n, size=n)].mean(1) for _ in range(400)])
        low, high = np.quantile(again, [0.025, 0.975], axis=0)
        return float(((low > 0) | (high < 0)).mean())

    assert missed(5) > 0.13
    assert missed(FEW_DOCUMENTS) < 0.085
    assert Extent(FEW_DOCUMENTS).warning() == ""
    says(Extent(FEW_DOCUMENTS - 1).warning(), "rough", FEW_DOCUMENTS)
    says(Extent(1, 1).warning(), "no 95 % interval", "at least two")


def test_what_an_interval_rests_on_is_said_in_words() -> None:
    assert [Extent(*n).words() for n in ((1, 0), (14, 0), (1, 1), (5, 5), (1400, 5))] == [
        "1 document", "14 documents", "1 text file", "5 text files", "1,400 documents, 5 of them text files"
    ]  # fmt: skip
    says(interval_note({"evaluated_documents": 30.0, "evaluated_files": 0.0}), "30 documents", "draw again")
    assert "rough" not in interval_note({"evaluated_documents": 30.0, "evaluated_files": 0.0})
    says(interval_note({"evaluated_documents": 5.0, "evaluated_files": 5.0}), "5 text files", "rough")
    says(interval_note({"evaluated_documents": 1.0, "evaluated_files": 1.0}), "1 text file", "no 95 % interval")
    assert interval_note({}) == "Intervals: whole documents are drawn again."  # an evaluation from before


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
