"""BatchTopK: the k * B largest positive gating values of the batch, B its kept tokens. Source: Bussmann et al. 2024.

A gate that depends on the batch is a training form only; the fold stage turns it into JumpReLU (SPEC 2.2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.activation_functions.interface import BudgetedActivation, GateSettings, Selection

SAMPLE_STRIDE = 16  # one value in so many tells where the candidates lie
SAMPLE_SLACK = 1.25  # candidates aimed at, relative to the budget
SAMPLE_FROM = 2**18  # values; below, a sample saves nothing


class BatchTopK(BudgetedActivation):
    """Keeps the k * B largest positive z over all tokens and features (of each layer by itself, where there are layers)."""

    def selection(self, z: Tensor, settings: GateSettings) -> Selection:
        if settings.layered:
            return self._of_each_layer(z, settings._replace(layered=False))
        n_features = z.shape[-1]
        rows = z.reshape(-1, n_features)
        budget = min(settings.k * rows.shape[0], rows.numel())
        kept = None if settings.mask is None else settings.mask.reshape(-1)
        if kept is not None:
            rows = rows.masked_fill(~kept[:, None], -torch.inf)
        values, index = largest(rows.reshape(-1), budget, n_features)
        open_ = ~(values <= 0)
        if kept is not None:
            open_ &= torch.arange(len(values), device=z.device) < settings.k * kept.sum()
        flat, order = index.sort()
        starts = torch.arange(rows.shape[0], device=z.device) * n_features
        return Selection(flat, open_[order], torch.searchsorted(flat, starts))

    def threshold(self, z: Tensor, support: Tensor, settings: GateSettings) -> Tensor:
        """The smallest active z of the batch (of each layer: [L, 1])."""
        open_ = torch.where(support, z, torch.inf)
        return open_.flatten(0, -3).amin((0, 2))[:, None] if settings.layered else open_.amin()

    def _of_each_layer(self, z: Tensor, settings: GateSettings) -> Selection:
        n_layers, n_features = z.shape[-2:]
        places, active = [], []
        for layer in range(n_layers):
            chosen = self.selection(z[..., layer, :], settings)
            token, feature = chosen.flat // n_features, chosen.flat % n_features
            places.append((token * n_layers + layer) * n_features + feature)
            active.append(chosen.active)
        flat, order = torch.cat(places).sort()
        starts = torch.arange(z.numel() // n_features, device=z.device) * n_features
        return Selection(flat, torch.cat(active)[order], torch.searchsorted(flat, starts))


def largest(values: Tensor, count: int, n_features: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of a vector, in descending order, and their places: torch.topk with less work on the CPU.

    There a strided sample first bounds them from below, and only what lies above is ranked; if that is too few, all are
    ranked. (Elsewhere the number of candidates would have to be waited for.) Which of several equal values at the cut
    are taken is not specified.
    """
    if values.device.type == "cpu" and values.numel() >= SAMPLE_FROM:
        stride = next(s for s in range(SAMPLE_STRIDE, values.numel()) if math.gcd(s, n_features) == 1)
        sample = values[::stride]
        wanted = math.ceil(SAMPLE_SLACK * count / stride) + 8
        if wanted < len(sample):
            bound = sample.topk(wanted, sorted=False).values.min()
            candidates = (~(values <= bound)).nonzero().squeeze(1)
            if len(candidates) >= count:
                found, within = values[candidates].topk(count)
                return found, candidates[within]
    found, index = values.topk(count)
    return found, index
