"""What a log step reports of its batch: loss terms, L0, explained variance, schedules, gradient, dead features.

Sums stay on the device until :meth:`Observation.figures`, which waits for it once. Figures are of normalised activations
and of the kept tokens of the step's whole batch:

    explained_variance = 1 - sum ||y - r||^2 / sum ||y - mean y||^2      (a mean for each hook point)
    l0 = mean over tokens of the number of positive features (over all layers)
    l2_norm_error = mean over tokens (and hook points) of ||y - r||;   l2_norm_error_ratio = sum ||y - r|| / sum ||y||

With several layers or written hook points also of each, as l0.0, explained_variance.0 and so on, in the dictionary's order; the
gradient's norm also of each parameter, as grad_norm.W_E.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline import metric_names as names
from pipeline.processes import ONE_PROCESS, Reductions
from pipeline.training.objective import LossReport

_COUNTS = (names.TOKENS, names.DEAD_FEATURES)


class Observation:
    """Figures of one step.

    Args:
        step: number of the step.
        scheduled: values of the schedules at this step.
        token_dims: 1 for [B, ...] batches, 2 for [B, T, ...].
        reductions: over the processes that the batch is dealt to.
        feature_group: over the processes that the features are dealt to.
    """

    def __init__(
        self,
        step: int,
        scheduled: dict[str, float],
        token_dims: int,
        reductions: Reductions = ONE_PROCESS,
        feature_group: Reductions = ONE_PROCESS,
    ) -> None:
        self.step, self._reductions, self._feature_group = step, reductions, feature_group
        self._scheduled, self._token_dims = dict(scheduled), token_dims
        self._sums: dict[str, Tensor] = {}
        self._tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, report: LossReport, label: Tensor, mask: Tensor | None) -> None:
        """Add a micro-batch; `label` [..., d_out] normalised, `mask` [...] True where kept."""
        tensors = (label, report.reconstruction, report.codes.n_active())
        y, r, active = (t.detach().flatten(0, self._token_dims - 1) for t in tensors)
        y, r = y.double(), r.double()
        if mask is not None:
            kept = mask.reshape(-1)
            y, r, active = y[kept], r[kept], active[kept]
        difference = y - r
        sums = {
            "n": torch.full((), len(y), dtype=torch.float64, device=y.device),
            "error": difference.square().sum((0, -1)),
            "square": y.square().sum((0, -1)),
            "error length": torch.linalg.vector_norm(difference, dim=-1).sum(0),
            "length": torch.linalg.vector_norm(y, dim=-1).sum(0),
            "label": y.sum(0),
            "active": active.sum(0).double(),
        }
        self._sums = {name: self._sums[name] + value if self._sums else value for name, value in sums.items()}

    @torch.no_grad()
    def finish(
        self, terms: dict[str, Tensor], grad_norm: Tensor, grad_norms: Mapping[str, Tensor], n_dead: Tensor, tokens: Tensor
    ) -> None:
        """Add what is known after the update: the step's loss terms, the norm of its gradient and of each parameter's {name:
        scalar}, dead features and tokens so far."""
        self._sums = dict(zip(self._sums, self._reductions.sum(list(self._sums.values())), strict=True))
        (self._sums["active"],) = self._feature_group.sum([self._sums["active"]])
        n = self._sums["n"].clamp_min(1)
        variance = self._sums["square"] - self._sums["label"].square().sum(-1) / n
        l0, explained = self._sums["active"] / n, 1 - self._sums["error"] / variance
        length, error_length = self._sums["length"], self._sums["error length"]
        self._tensors = {
            **terms,
            names.L0: l0.sum(),
            names.EXPLAINED_VARIANCE: 1 - self._sums["error"].sum() / variance.sum(),
            **_each(names.L0, l0),
            **_each(names.EXPLAINED_VARIANCE, explained),
            names.L2_NORM_ERROR: (error_length / n).mean(),
            names.L2_NORM_ERROR_RATIO: error_length.sum() / length.sum(),
            **_each(names.L2_NORM_ERROR, error_length / n),
            **_each(names.L2_NORM_ERROR_RATIO, error_length / length),
            names.GRAD_NORM: grad_norm,
            **{f"{names.GRAD_NORM}.{name}": norm for name, norm in grad_norms.items()},
            names.DEAD_FEATURES: n_dead,
            names.TOKENS: tokens,
        }

    def figures(self) -> dict[str, float]:
        """{name: value} of the step; what is not finite (explained variance of constant labels) is left out."""
        values = torch.stack([tensor.detach().double() for tensor in self._tensors.values()]).tolist()
        named = {**dict(zip(self._tensors, values, strict=True)), **self._scheduled}
        finite = {name: value for name, value in named.items() if math.isfinite(value)}
        return finite | {name: int(finite[name]) for name in _COUNTS}


def _each(name: str, values: Tensor) -> dict[str, Tensor]:
    """{name.index: value} where there are several."""
    return {f"{name}.{index}": value for index, value in enumerate(values)} if values.ndim else {}
