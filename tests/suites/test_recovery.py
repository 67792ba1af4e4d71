"""Recovery of known directions: hand-sized cases, every assignment tried, counts by loops."""

from __future__ import annotations

import itertools

import pytest
import torch

from pipeline.seeding import generator
from pipeline.suites.recovery import DetectionCounts, best_direction, matching, recovery, uniqueness


def drawn(name: str, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(0, "tests", name))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt()))


@pytest.mark.parametrize(("n", "f"), [(4, 4), (3, 5), (5, 3)])
def test_the_matching_is_the_best_of_all_assignments(n: int, f: int) -> None:
    directions, rows = drawn("directions", n, 3), drawn("rows", f, 3)
    similarity = [[abs(cosine(a, b)) for b in rows] for a in directions]
    if n <= f:
        best = max(sum(similarity[i][j] for i, j in enumerate(chosen)) for chosen in itertools.permutations(range(f), n))
    else:
        best = max(sum(similarity[i][j] for j, i in enumerate(chosen)) for chosen in itertools.permutations(range(n), f))
    found = matching(directions, rows)
    assert len(found.rows) == min(n, f) == len(set(found.rows.tolist())) == len(set(found.directions.tolist()))
    assert found.mean == pytest.approx(best / min(n, f), rel=1e-5)


def test_a_matching_is_one_to_one_and_either_sign_counts() -> None:
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    rows = torch.tensor([[-2.0, 0.0], [1.0, 1.0]])
    assert matching(directions, rows).mean == pytest.approx((1 + 0.5**0.5) / 2)
    both = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert matching(directions, both).mean == pytest.approx(0.5)
    assert recovery(directions, both).tolist() == [1.0, 0.0]


def test_uniqueness_counts_directions_that_are_the_best_of_a_row() -> None:
    directions = torch.eye(3)
    rows = torch.tensor([[1.0, 0.1, 0.0], [-5.0, 0.0, 1.0], [0.0, 1.0, 0.2], [0.9, 0.0, 0.0]])
    assert best_direction(directions, rows).tolist() == [0, 0, 1, 0]
    assert uniqueness(directions, rows) == 2 / 4


def test_detection_equals_counts_by_loops() -> None:
    known = torch.tensor([2, 0, 0, 1])
    f, a = drawn("f", 40, 4).relu(), drawn("a", 40, 3).relu()
    f[:, 3] = 0  # dead
    counts = DetectionCounts(known)
    counts.update(f[:15], a[:15])
    counts.update(f[15:], a[15:])
    totals = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    for j in range(4):
        tp = fp = fn = 0
        for row in range(40):
            fires, true = bool(f[row, j] > 0), bool(a[row, known[j]] > 0)
            tp, fp, fn = tp + (fires and true), fp + (fires and not true), fn + (true and not fires)
        precision = tp / (tp + fp) if tp + fp else 0.0
        recall = tp / (tp + fn) if tp + fn else 0.0
        totals["precision"] += precision / 4
        totals["recall"] += recall / 4
        totals["f1"] += (2 * precision * recall / (precision + recall) if precision + recall else 0.0) / 4
    assert counts.results() == pytest.approx(totals)
