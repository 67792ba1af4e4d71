"""Thresholds of the inference form, from batches that were not trained on (SPEC 2.2, 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.activation_functions.calibration import Calibration, ThresholdCalibrator, quantile_threshold

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Codes, Dictionary


def _coded(dictionary: Dictionary, batches: Iterable[Any]) -> Iterator[tuple[Codes, Tensor | None]]:
    for batch in batches:
        x, mask = batch if isinstance(batch, tuple) else (batch, None)
        yield dictionary.codes(x, mask), mask


def n_layers_of(dictionary: Dictionary) -> int:
    """Layers of features of a token: L of feature_shape (L, F), else 1."""
    return torch.Size(dictionary.feature_shape).numel() // dictionary.feature_shape[-1]


def inference_thresholds(dictionary: Dictionary, batches: Iterable[Any]) -> tuple[Tensor, Calibration]:
    """theta of `feature_shape`, float64, for a gate of the topk family: one value, or one for each layer that has its own k.

    Args:
        dictionary: with a gate of the topk family.
        batches: inputs, or pairs (input, mask).

    Returns: theta on the CPU, and the calibration of all layers together (its thresholds are means over layers).

    Raises:
        NumericsError: no positive gating value was kept.
    """
    n_layers, shape = n_layers_of(dictionary), dictionary.feature_shape
    together = n_layers == 1 or dictionary.activation.joint_layers
    k = dictionary.config.top_k * (n_layers if together else 1) // dictionary.config.k_layers
    calibrators = [ThresholdCalibrator(k) for _ in range(1 if together else n_layers)]
    for codes, mask in _coded(dictionary, batches):
        lead = codes.z.ndim - len(shape)
        z, active = codes.z.flatten(lead), (codes.f != 0).flatten(lead)
        groups = zip(z.chunk(len(calibrators), -1), active.chunk(len(calibrators), -1), strict=True)
        for calibrator, (part, support) in zip(calibrators, groups, strict=True):
            calibrator.add(part, support, mask)
    found = [calibrator.result() for calibrator in calibrators]
    theta = torch.tensor([each.threshold for each in found], dtype=torch.float64)
    return theta.reshape(-1, *(1,) * (len(shape) - 1)).expand(shape).clone(), _of_all_layers(found)


def _of_all_layers(found: list[Calibration]) -> Calibration:
    if len(found) == 1:
        return found[0]
    means = {
        name: sum(getattr(each, name) for each in found) / len(found) for name in ("threshold", "mean_of_minimum", "quantile")
    }
    sums = {name: sum(getattr(each, name) for each in found) for name in ("l0_before", "l0_after")}
    return dataclasses.replace(found[0], **means, **sums)


def threshold_factors(dictionary: Dictionary, batches: Iterable[Any], target_l0: float) -> tuple[Tensor, Calibration]:
    """The one factor of all thresholds (of each layer's) that gives `target_l0` active features a token on these batches.

    Args:
        dictionary: with thresholds.
        batches: inputs, or pairs (input, mask).
        target_l0: a token and layer.

    Returns: factors that broadcast over `feature_shape`, float64 on the CPU, and the calibration, whose `threshold` is their
        mean.

    Raises:
        NumericsError: no feature is active.
    """
    n_layers, shape = n_layers_of(dictionary), dictionary.feature_shape
    calibrators = [ThresholdCalibrator(target_l0) for _ in range(n_layers)]
    for codes, mask in _coded(dictionary, batches):
        lead = codes.z.ndim - len(shape)
        ratios, active = (codes.z / dictionary.log_jumprelu_threshold.exp()).flatten(lead), (codes.f != 0).flatten(lead)
        groups = zip(ratios.chunk(n_layers, -1), active.chunk(n_layers, -1), strict=True)
        for calibrator, (part, support) in zip(calibrators, groups, strict=True):
            calibrator.add(part, support, mask)
    found = [calibrator.result(target_l0) for calibrator in calibrators]
    factors = torch.tensor([each.threshold for each in found], dtype=torch.float64)
    return factors.reshape(-1, *(1,) * (len(shape) - 1)), _of_all_layers(found)


@torch.no_grad()
def first_thresholds(dictionary: Dictionary, z: Tensor, target_l0: float, mask: Tensor | None) -> Tensor:
    """theta of `feature_shape`: one value (of each layer), the quantile of z that gives `target_l0` features a token.

    Args:
        dictionary: with thresholds.
        z: gating values [..., F] or [..., L, F]; mask: bool [...], None: all kept.
        target_l0: a token and layer.

    Raises:
        NumericsError: no gating value (of a layer) is positive.
    """
    shape = dictionary.feature_shape
    layers = z.unbind(-2) if len(shape) > 1 else (z,)
    theta = torch.stack([quantile_threshold(layer, target_l0, mask, dictionary.feature_group) for layer in layers])
    return theta.reshape(-1, *(1,) * (len(shape) - 1)).expand(shape)
