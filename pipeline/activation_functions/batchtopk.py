"""BatchTopK: the k * B largest positive gating values of the batch, B its kept tokens. Source: Bussmann et al. 2024.

A gate that depends on the batch is a training form only; the fold stage turns it into JumpReLU (SPEC 2.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.activation_functions.budget import within_budget
from pipeline.activation_functions.interface import BudgetedActivation, GateSettings, Selection

PLACES = 2**48  # more than a process's rows have


class BatchTopK(BudgetedActivation):
    """Keeps the k * B largest positive z over all tokens and features (of each layer by itself, where there are layers)."""

    def selection(self, z: Tensor, settings: GateSettings) -> Selection:
        if settings.layered:
            return self._of_each_layer(z, settings._replace(layered=False))
        n_features = z.shape[-1]
        rows = z.reshape(-1, n_features)
        kept = None if settings.mask is None else settings.mask.reshape(-1)
        if kept is not None:
            rows = rows.masked_fill(~kept[:, None], -torch.inf)
        kernels = settings.kernels_of(z)
        if settings.reductions.size * settings.feature_group.size > 1:
            return self._of_all_processes(rows, len(rows) if kept is None else int(kept.sum()), settings)
        if kept is None or kernels.counts_freely:
            n_kept = len(rows) if kept is None else int(kept.sum())
            flat = kernels.largest_of_all(rows, min(settings.k, n_features) * n_kept)
            values = rows.reshape(-1).index_select(0, flat)
            return Selection(flat, values, ~(values <= 0))
        # Of a budget that does not depend on the mask, so that nothing waits for the device.
        values, flat = rows.reshape(-1).topk(min(settings.k, n_features) * len(rows))
        active = ~(values <= 0)
        active &= torch.arange(len(values), device=z.device) < min(settings.k, n_features) * kept.sum()
        flat, order = flat.sort()
        return Selection(flat, values[order], active[order])

    def threshold(self, smallest: Tensor, settings: GateSettings) -> Tensor:
        """The smallest active z of the batch (of each layer: [L, 1])."""
        least = smallest.flatten(0, -3).amin((0, 2))[:, None] if settings.layered else smallest.amin()
        return torch.stack(settings.reductions.gathered(least)).amin(0)

    def _of_all_processes(self, rows: Tensor, n_kept: int, settings: GateSettings) -> Selection:
        """This process's part of what one process would choose of all rows and features, ties included: of these the first."""
        n_columns, others = rows.shape[1], settings.feature_group
        (n_kept,) = settings.reductions.sum([n_kept])
        budget = min(settings.k, n_columns * others.size) * n_kept
        flat = settings.kernels_of(rows).largest_of_all(rows, min(budget, rows.numel()))
        values = rows.reshape(-1).index_select(0, flat)

        def places() -> Tensor:
            row, column = flat // n_columns, flat % n_columns
            own = row * n_columns * others.size + settings.place_in_row(column, n_columns)
            return (own + settings.reductions.rank * PLACES)[None]

        chosen = within_budget(values[None], places, budget, [others, settings.reductions])[0]
        flat, values = flat[chosen], values[chosen]
        return Selection(flat, values, ~(values <= 0))

    def _of_each_layer(self, z: Tensor, settings: GateSettings) -> Selection:
        n_layers, n_features = z.shape[-2:]
        parts = []
        for layer in range(n_layers):
            chosen = self.selection(z[..., layer, :], settings)
            token, feature = chosen.flat // n_features, chosen.flat % n_features
            parts.append(((token * n_layers + layer) * n_features + feature, chosen.values, chosen.active))
        flat, values, active = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        flat, order = flat.sort()
        return Selection(flat, values[order], active[order])
