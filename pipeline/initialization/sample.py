"""The rows that an initialisation looks at: normalised, masked tokens left out."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.parts import LinearPart
from pipeline.errors import DataError
from pipeline.norms.normalizer import Normalizer


class RawStatistics(NamedTuple):
    """Of a part's raw inputs and labels.

    Attributes:
        mean: mean raw input [d_in].
        spread: root of the mean squared distance of raw inputs from it.
        scale_in, scale_out: normalised over raw, as ratios of mean norms (exact for dataset-wise factors).
    """

    mean: Tensor
    spread: float
    scale_in: float
    scale_out: float


@dataclasses.dataclass(frozen=True)
class Sample:
    """Activations as a dictionary takes them.

    Attributes:
        x: inputs, normalised, float32 (or the dictionary's dtype): kept tokens [N, d_in] ([N, L, d_in] of several hook
            points); for a kind that reads sequences whole contexts [n, T, d_in].
        y: labels of the same tokens; the very tensor `x` where input and label are one activation.
        raw_x, raw_y: the same before normalisation.
        mask: bool [n, T] of contexts, None: all kept.
    """

    x: Tensor
    y: Tensor
    raw_x: Tensor
    raw_y: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, tokens: int, sequences: bool) -> Sample:
        """The first `tokens` tokens (whole contexts, at least one, where `sequences`)."""
        n = max(1, tokens // self.x.shape[1]) if sequences else tokens
        mask = None if self.mask is None else self.mask[:n]
        return Sample(self.x[:n], self.y[:n], self.raw_x[:n], self.raw_y[:n], mask)

    def inputs(self, part: LinearPart) -> Tensor:
        """The part's inputs of kept tokens, [N, d_in]."""
        return self._rows(part.inputs(self.x))

    def labels(self, part: LinearPart) -> Tensor:
        """The part's labels of kept tokens, [N, d_out]."""
        return self._rows(part.labels(self.y))

    def raw(self, part: LinearPart) -> RawStatistics:
        """Of the part's raw inputs, and how they and its raw labels were scaled."""
        raw_x, raw_y = self._rows(part.inputs(self.raw_x)), self._rows(part.labels(self.raw_y))
        mean = raw_x.mean(0)
        spread = float((raw_x - mean).square().sum(-1).mean().sqrt())
        return RawStatistics(mean, spread, _ratio(self.inputs(part), raw_x), _ratio(self.labels(part), raw_y))

    def raw_scales(self) -> tuple[float, float]:
        """Normalised over raw, of all inputs and of all labels, as ratios of mean norms."""
        return _ratio(self._rows(self.x), self._rows(self.raw_x)), _ratio(self._rows(self.y), self._rows(self.raw_y))

    def _rows(self, values: Tensor) -> Tensor:
        rows = values.reshape(-1, values.shape[-1])
        return rows if self.mask is None else rows[self.mask.reshape(-1)]


def make_sample(
    dictionary: Dictionary, normalizer: Normalizer, inputs: Tensor, labels: Tensor, mask: Tensor | None = None
) -> Sample:
    """A sample from raw activations.

    Massive tokens take no part, whether a rule excludes them from training or not: one of them can be the mean.

    Args:
        dictionary: says dtype and hook points.
        normalizer: of that dictionary.
        inputs: [N, d_in] or [n, T, d_in], raw ([..., L, d_in] of several hook points).
        labels: the same with d_out; `inputs` itself for an SAE.
        mask: bool [N] or [n, T], True for a kept token; None: all.

    Raises:
        DataError: no token is kept.
    """
    dtype = next(dictionary.parameters()).dtype
    same = labels is inputs
    inputs = inputs.to(dtype)
    labels = inputs if same else labels.to(dtype)
    mask = normalizer.massive.kept(normalizer.by_hook(inputs, labels), mask)
    x, y = normalizer(inputs, labels, mask)

    def kept(tensor: Tensor, hooks: tuple[str, ...]) -> Tensor:
        rows = tensor.reshape(-1, *tensor.shape[-1 if len(hooks) == 1 else -2 :])
        return rows if mask is None else rows[mask.reshape(-1)]

    rows_x = kept(x, dictionary.hooks_in)
    if len(rows_x) == 0:
        raise DataError("initializer: every token of the sample is masked; raise initializer.tokens")
    if dictionary.reads_sequences:
        return Sample(x, y, inputs, labels, mask)
    rows_y = rows_x if same else kept(y, dictionary.hooks_out)
    del x, y  # a sample is large: no more than three of it at once
    raw_x = kept(inputs, dictionary.hooks_in)
    return Sample(rows_x, rows_y, raw_x, raw_x if same else kept(labels, dictionary.hooks_out))


def _ratio(normalized: Tensor, raw: Tensor) -> float:
    lengths = torch.linalg.vector_norm(raw, dim=-1, dtype=torch.float64).mean()
    return float(torch.linalg.vector_norm(normalized, dim=-1, dtype=torch.float64).mean() / lengths.clamp_min(1e-12))
