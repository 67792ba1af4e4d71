"""How much of a prediction an attribution graph explains: replacement score and completeness score (SPEC 7).

With |A| normalised so that the effects on each node that has any sum to 1, and p the probabilities of the logits, the
influence of a node is its share in all paths to the logits, I = p (|A| + |A|^2 + ...). Then

    replacement_score  = sum of I over tokens / (the same + sum of I over errors)
    completeness_score = sum over nodes of (I + p) (1 - share of errors in the effects on the node) / sum over nodes of (I + p)

A row adds to the influence of nodes below it alone, so that rows are taken from the logits down and none is kept.
Source: Ameisen et al. 2025; circuit-tracer, compute_graph_scores.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.evaluation.attribution_graph import AttributionGraph, Rows

TINY = 1e-10


class Scores(NamedTuple):
    """Of one graph.

    Attributes:
        replacement, completeness: 0 to 1, 1 being best.
    """

    replacement: float
    completeness: float


def graph_scores(graph: AttributionGraph) -> Scores:
    """Both scores of a graph."""
    first = graph.nodes.n_features
    errors = slice(first, first + graph.full.n_layers * graph.n_positions)
    influence = torch.zeros(graph.n_sources, dtype=torch.float64, device=graph.run.embedded.device)
    explained = 0.0  # by what is no error, of the effects on each node, weighted by the node's influence
    for rows in graph.logit_rows():
        explained += _take(rows, graph.probabilities[rows.targets], influence, errors)
    for rows in graph.feature_rows():
        explained += _take(rows, influence[rows.targets], influence, errors)
    explained += float(influence[first:].sum())  # on errors and tokens there is no effect, and so none of an error
    tokens, missed = float(influence[errors.stop :].sum()), float(influence[errors].sum())
    total = float(influence.sum() + graph.probabilities.sum())
    return Scores(tokens / max(tokens + missed, TINY), explained / max(total, TINY))


def _take(rows: Rows, weights: Tensor, influence: Tensor, errors: slice) -> float:
    """Add the influence of some nodes to those that act on them; the explained part of theirs."""
    effects = rows.effects.abs().double()
    shares = effects / effects.sum(1, keepdim=True).clamp_min(TINY)
    influence += weights @ shares
    return float((weights * (1 - shares[:, errors].sum(1))).sum())
