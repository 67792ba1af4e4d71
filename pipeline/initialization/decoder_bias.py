"""bias_init_method: where the decoder bias starts (all_zero, mean or geometric_median of the labels)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.parts import LinearPart
from pipeline.errors import ParamsError
from pipeline.initialization.sample import Sample
from pipeline.initialization.weights import parts_of


class GeometricMedian(NamedTuple):
    """The point, the number of iterations, and whether they met the tolerance."""

    point: Tensor
    iterations: int
    converged: bool


@torch.no_grad()
def geometric_median(
    rows: Tensor, *, eps: float = 1e-6, tolerance: float = 1e-6, max_iterations: int = 1000
) -> GeometricMedian:
    """The point with the least sum of distances to the rows, by Weiszfeld's iteration from the mean.

        m <- sum_i x_i / max(||x_i - m||, eps) / sum_i 1 / max(||x_i - m||, eps)

    until ||change|| <= tolerance * (eps + root mean square distance of the rows from their mean).

    Args:
        rows: [N, D]; computed in float32 unless float64.
        eps: least distance, so that a row at m does not divide by zero.
        tolerance: relative size of the last change.
        max_iterations: after which it stops anyway.

    Source: Weiszfeld 1937; Pillutla et al. 2019 (the smoothed form).
    """
    rows = rows if rows.dtype == torch.float64 else rows.float()
    m = rows.mean(0)
    scale = (rows - m).square().sum(-1).mean().sqrt() + eps
    for iteration in range(1, max_iterations + 1):
        weights = torch.linalg.vector_norm(rows - m, dim=-1).clamp_min(eps).reciprocal()
        new = (weights @ rows) / weights.sum()
        change = torch.linalg.vector_norm(new - m)
        m = new
        if bool(change <= tolerance * scale):
            return GeometricMedian(m, iteration, True)
    return GeometricMedian(m, max_iterations, False)


def biases_of(dictionary: Dictionary, method: str) -> list[tuple[LinearPart, Tensor]]:
    """The parts and decoder biases that `bias_init_method: <method>` sets.

    Raises:
        ParamsError: the dictionary has none.
    """
    found = [(part, part.b_D) for part in parts_of(dictionary, "bias_init_method")]
    biased = [(part, bias) for part, bias in found if bias is not None]
    if len(biased) < len(found):
        raise ParamsError(f"initializer.bias_init_method: {method} needs dictionary.use_decoder_bias true; write all_zero")
    return biased


@torch.no_grad()
def set_decoder_bias_(dictionary: Dictionary, sample: Sample, method: str) -> None:
    """b_D = 0, the labels' mean, or their geometric median.

    Raises:
        ParamsError: the dictionary has no decoder bias.
    """
    if method == "all_zero":
        return
    for part, bias in biases_of(dictionary, method):
        labels = sample.labels(part)
        bias.copy_(labels.mean(0) if method == "mean" else geometric_median(labels).point)
