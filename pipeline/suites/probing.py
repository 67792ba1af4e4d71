"""Sparse probing: how well k features tell a label from the others, beside all activations, principal directions and channels.

For each label, against all others: the k columns whose means differ most between the two, on training texts alone; a logistic
regression on them; its balanced accuracy on test texts. SPEC 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LEAST_EXAMPLES = 5  # of a label, and of the others, on each side
MOST_STEPS = 1000  # of the solver


@dataclass(frozen=True)
class Examples:
    """What probes read.

    Attributes:
        activations: [N, D].
        features: sparse [N, F].
        labels: [N].
        test: bool [N], True for the examples of test texts.
    """

    activations: np.ndarray
    features: csr_matrix
    labels: np.ndarray
    test: np.ndarray


def mean_differences(x: Any, positive: np.ndarray) -> np.ndarray:
    """|mean over positive examples - mean over the others| of each column, float64.

    Args:
        x: [N, F], dense or sparse.
        positive: bool [N].
    """
    means = [np.asarray(x[rows].astype(np.float64).mean(axis=0)).ravel() for rows in (positive, ~positive)]
    return np.abs(means[0] - means[1])


def most_different(x: Any, positive: np.ndarray, k: int) -> np.ndarray:
    """The k columns whose means differ most, the most different first; of equal ones the first."""
    return np.argsort(-mean_differences(x, positive), kind="stable")[:k]


def balanced_accuracy(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mean of the shares of positive and of other examples that are told rightly; 0.5 says nothing, 1 is perfect."""
    return float((predicted[truth].mean() + (~predicted[~truth]).mean()) / 2)


def probe_accuracy(x: np.ndarray, positive: np.ndarray, test: np.ndarray) -> float:
    """Balanced accuracy on test examples of a logistic regression that was fitted to the others.

    Columns are scaled to mean 0 and deviation 1 on training examples; both classes weigh the same; L2 penalty with C = 1.

    Args:
        x: [N, k].
        positive, test: bool [N].
    """
    from sklearn.linear_model import LogisticRegression

    train = ~test
    x = x.astype(np.float64)
    deviation = x[train].std(axis=0)
    x = (x - x[train].mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    fitted = LogisticRegression(C=1.0, class_weight="balanced", max_iter=MOST_STEPS).fit(x[train], positive[train])
    return balanced_accuracy(fitted.predict(x[test]).astype(bool), positive[test])


def principal_scores(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """x - mean in the principal directions of the training examples, [N, min(D, n - 1)], float64."""
    x = x.astype(np.float64)
    centred = x - x[train].mean(axis=0)
    rank = min(x.shape[1], max(int(train.sum()) - 1, 1))
    directions = np.linalg.svd(centred[train], full_matrices=False)[2][:rank]
    return centred @ directions.T


def probe(examples: Examples, ks: Sequence[int] = (1, 2, 5)) -> dict[str, float]:
    """Accuracies of each label, as `<name>.<label>`, and their means over labels.

    Of two labels one is probed: the other one is the same task.

    Args:
        examples: of at least two labels.
        ks: numbers of features.

    Returns: `accuracy_k<k>`, `pca_accuracy_k<k>`, `channel_accuracy_k<k>` and `dense_accuracy`.

    Raises:
        DataError: k features are more than there are, or a label has too few examples on one side.
    """
    width = min(examples.features.shape[1], examples.activations.shape[1])
    if max(ks) > width:
        raise DataError(f"probes of k = {max(ks)} columns: there are {width:,}; give a smaller --k")
    labels = sorted(set(examples.labels.tolist()))
    for label in labels:
        _check(examples, label)
    scores = principal_scores(examples.activations, ~examples.test)
    found: dict[str, float] = {}
    probed = labels[:1] if len(labels) == 2 else labels
    for label in probed:
        own = _probe_label(examples, scores, label, ks)
        found |= {f"{name}.{label}": value for name, value in own.items()}
    names = list(dict.fromkeys(key.partition(".")[0] for key in found))
    return {name: float(np.mean([found[f"{name}.{label}"] for label in probed])) for name in names} | found


def _probe_label(examples: Examples, scores: np.ndarray, label: str, ks: Sequence[int]) -> dict[str, float]:
    positive, test = examples.labels == label, examples.test
    kinds: dict[str, Any] = {"": examples.features, "pca_": scores, "channel_": examples.activations}
    found = {}
    for name, x in kinds.items():
        order = most_different(x[~test], positive[~test], max(ks))
        columns = x[:, order].toarray() if name == "" else x[:, order]
        for k in ks:
            found[f"{name}accuracy_k{k}"] = probe_accuracy(columns[:, :k], positive, test)
    found["dense_accuracy"] = probe_accuracy(examples.activations, positive, test)
    return found


def _check(examples: Examples, label: str) -> None:
    positive = examples.labels == label
    for side, rows in (("training", ~examples.test), ("test", examples.test)):
        n = min(int((positive & rows).sum()), int((~positive & rows).sum()))
        if n < LEAST_EXAMPLES:
            raise DataError(
                f"label '{label}': {n} examples of it or of the others on the {side} side, wanted at least {LEAST_EXAMPLES}; "
                "give more texts, or another --test-fraction"
            )
