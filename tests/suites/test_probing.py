"""Sparse probes against sklearn as a whole pipeline, naive means and hand-sized cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.errors import DataError
from pipeline.suites.probing import (
    Examples,
    balanced_accuracy,
    mean_differences,
    most_different,
    principal_scores,
    probe,
    probe_accuracy,
)
from tests.messages import saying

N, D, F = 120, 6, 15


def examples(labels: tuple[str, ...] = ("a", "b", "c"), signal: float = 1.5) -> Examples:
    """Gaussian activations; the first columns of the features are larger on a label each."""
    draw = np.random.default_rng(3)
    y = np.array(labels)[draw.integers(len(labels), size=N)]
    f = draw.exponential(size=(N, F)) * (draw.random((N, F)) < 0.4)
    x = draw.standard_normal((N, D)) * np.array([4.0, 2.0, 1.0, 1.0, 0.5, 0.2])
    for i, label in enumerate(labels):
        f[y == label, i] += signal * draw.random((y == label).sum())
        x[y == label, i] += signal
    return Examples(x.astype(np.float32), csr_matrix(f.astype(np.float32)), y, draw.random(N) < 0.4)


def naive_accuracy(x: np.ndarray, positive: np.ndarray, test: np.ndarray) -> float:
    fitted = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=10_000, tol=1e-8))
    fitted.fit(x[~test].astype(np.float64), positive[~test])
    return float(balanced_accuracy_score(positive[test], fitted.predict(x[test].astype(np.float64))))


def naive_order(x: np.ndarray, positive: np.ndarray) -> list[int]:
    """Columns by |difference of means|, each mean a loop over rows."""
    differences = []
    for column in range(x.shape[1]):
        sums, counts = [0.0, 0.0], [0, 0]
        for row in range(len(x)):
            sums[int(positive[row])] += float(x[row, column])
            counts[int(positive[row])] += 1
        differences.append(abs(sums[1] / counts[1] - sums[0] / counts[0]))
    return sorted(range(x.shape[1]), key=lambda column: (-differences[column], column))


def test_every_accuracy_equals_the_naive_one() -> None:
    given, ks = examples(), (1, 2, 5)
    found = probe(given, ks)
    f, x, test = given.features.toarray(), given.activations.astype(np.float64), given.test
    mean = x[~test].mean(0)
    values, vectors = np.linalg.eigh(np.cov((x[~test] - mean).T))
    scores = (x - mean) @ vectors[:, np.argsort(-values)]
    for label in "abc":
        positive = given.labels == label
        for name, columns in (("", f), ("pca_", scores), ("channel_", given.activations)):
            order = naive_order(columns[~test], positive[~test])
            for k in ks:
                wanted = naive_accuracy(columns[:, order[:k]], positive, test)
                assert found[f"{name}accuracy_k{k}.{label}"] == pytest.approx(wanted, abs=1e-9), (label, name, k)
        assert found[f"dense_accuracy.{label}"] == pytest.approx(naive_accuracy(x, positive, test), abs=1e-9)
    for name in ("accuracy_k1", "pca_accuracy_k5", "dense_accuracy"):
        assert found[name] == pytest.approx(sum(found[f"{name}.{label}"] for label in "abc") / 3)


def test_test_examples_choose_and_fit_nothing() -> None:
    """What stands in them changes no probe: only what is predicted of them."""
    given = examples(("a", "b"))
    f = given.features.toarray()
    other = f.copy()
    other[given.test] = 100 * np.random.default_rng(5).random((int(given.test.sum()), F))
    positive = given.labels == "a"
    train = ~given.test
    np.testing.assert_array_equal(
        most_different(f[train], positive[train], 5), most_different(other[train], positive[train], 5)
    )
    scores = principal_scores(given.activations, train)
    changed = given.activations.copy()
    changed[given.test] *= -7
    np.testing.assert_allclose(np.abs(principal_scores(changed, train)[train]), np.abs(scores[train]), rtol=1e-9, atol=1e-9)


def test_means_of_sparse_columns_are_those_of_dense_ones() -> None:
    given = examples()
    positive = given.labels == "b"
    np.testing.assert_allclose(
        mean_differences(given.features, positive), mean_differences(given.features.toarray(), positive), rtol=1e-6
    )
    assert most_different(given.features, positive, 4).tolist() == naive_order(given.features.toarray(), positive)[:4]


def test_balanced_accuracy_is_the_mean_of_both_shares() -> None:
    truth = np.array([True, True, True, True, False])
    assert balanced_accuracy(np.array([True, True, True, False, True]), truth) == pytest.approx((3 / 4 + 0) / 2)
    assert balanced_accuracy(np.ones(5, dtype=bool), truth) == 0.5


def test_a_column_that_is_constant_tells_nothing() -> None:
    given = examples(("a", "b"))
    constant = np.full((N, 1), 3.0)
    assert probe_accuracy(constant, given.labels == "a", given.test) == 0.5


def test_of_two_labels_one_is_probed() -> None:
    found = probe(examples(("a", "b")), (1,))
    assert found["accuracy_k1"] == found["accuracy_k1.a"]
    assert "accuracy_k1.b" not in found


def test_a_perfect_feature_is_found_and_without_signal_there_is_nothing() -> None:
    given = examples(("a", "b"), signal=50.0)
    f = given.features.toarray()
    f[:, 7] = np.where(given.labels == "a", 9.0, 0.0)
    found = probe(Examples(given.activations, csr_matrix(f), given.labels, given.test), (1,))
    assert found["accuracy_k1"] > 0.9
    shuffled = np.random.default_rng(0).permutation(given.labels)
    nothing = probe(Examples(given.activations, given.features, shuffled, given.test), (1, 2))
    assert abs(nothing["accuracy_k2"] - 0.5) < 0.25


def test_refusals() -> None:
    given = examples(("a", "b"))
    with pytest.raises(DataError, match=saying("k = 7", 6)):
        probe(given, (1, 7))
    few = given.labels.copy()
    few[given.test] = "b"
    with pytest.raises(DataError, match=saying("label 'a'", 0, "test", 5)):
        probe(Examples(given.activations, given.features, few, given.test))
