"""The rows that an initialisation looks at: normalised, masked tokens left out."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import DataError
from pipeline.initialization.normalization import Normalizer


@dataclasses.dataclass(frozen=True)
class Sample:
    """Kept tokens of a dictionary with one hook point to read and one to write.

    Attributes:
        x: inputs [N, d_in], normalised, float32 (or the dictionary's dtype).
        y: labels [N, d_out] of the same tokens; the very tensor `x` where input and label are one activation.
        raw_mean: mean raw input [d_in].
        raw_spread: root of the mean squared distance of raw inputs from their mean.
        scale_in, scale_out: normalised over raw, as ratios of mean norms (exact for dataset-wise factors).
    """

    x: Tensor
    y: Tensor
    raw_mean: Tensor
    raw_spread: float
    scale_in: float
    scale_out: float

    def __len__(self) -> int:
        return len(self.x)


def make_sample(
    dictionary: Dictionary, normalizer: Normalizer, inputs: Tensor, labels: Tensor, mask: Tensor | None = None
) -> Sample:
    """A sample from raw activations.

    Args:
        dictionary: says dtype and hook points.
        normalizer: of that dictionary.
        inputs: [N, d_in] or [n, T, d_in], raw.
        labels: the same with d_out; `inputs` itself for an SAE.
        mask: bool [N] or [n, T], True for a kept token; None: all.

    Raises:
        DataError: no token is kept.
    """
    dtype = next(dictionary.parameters()).dtype
    same = labels is inputs
    inputs = inputs.to(dtype)
    labels = inputs if same else labels.to(dtype)
    x, y = normalizer(inputs, labels, mask)

    def kept(tensor: Tensor) -> Tensor:
        rows = tensor.reshape(-1, tensor.shape[-1])
        return rows if mask is None else rows[mask.reshape(-1)]

    raw_x, rows_x = kept(inputs), kept(x)
    raw_y, rows_y = (raw_x, rows_x) if same else (kept(labels), kept(y))
    if len(rows_x) == 0:
        raise DataError("initializer: every token of the sample is masked; raise initializer.tokens")
    mean = raw_x.mean(0)
    return Sample(
        x=rows_x,
        y=rows_y,
        raw_mean=mean,
        raw_spread=float((raw_x - mean).square().sum(-1).mean().sqrt()),
        scale_in=_ratio(rows_x, raw_x),
        scale_out=_ratio(rows_y, raw_y),
    )


def _ratio(normalized: Tensor, raw: Tensor) -> float:
    lengths = torch.linalg.vector_norm(raw, dim=-1, dtype=torch.float64).mean()
    return float(torch.linalg.vector_norm(normalized, dim=-1, dtype=torch.float64).mean() / lengths.clamp_min(1e-12))
