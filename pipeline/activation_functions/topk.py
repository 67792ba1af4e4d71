"""TopK: the k largest positive gating values of each token. Source: Gao et al. 2024."""

from __future__ import annotations

from torch import Tensor

from pipeline.activation_functions.budget import within_budget
from pipeline.activation_functions.interface import BudgetedActivation, GateSettings, Selection


class TopK(BudgetedActivation):
    """Keeps the k largest positive z along the last dimension (of each layer too, where z is [..., L, F])."""

    def selection(self, z: Tensor, settings: GateSettings) -> Selection:
        n_features = z.shape[-1]
        k, rows = min(settings.k, n_features), z.reshape(-1, n_features)
        flat = settings.kernels_of(z).largest(rows, k)
        if settings.feature_group.size > 1:
            flat = self._of_all_processes(rows, flat.reshape(len(rows), k), settings)
        values = z.reshape(-1).index_select(0, flat)
        active = ~(values <= 0)
        if settings.mask is not None:
            rows_a_token = len(rows) // settings.mask.numel()
            active &= settings.mask.reshape(-1)[flat // (n_features * rows_a_token)]
        return Selection(flat, values, active)

    def _of_all_processes(self, rows: Tensor, flat: Tensor, settings: GateSettings) -> Tensor:
        """Of this process's largest entries [R, n] those that one process would choose of all features, ties included."""
        n_features = rows.shape[1]
        chosen = within_budget(
            rows.reshape(-1).index_select(0, flat.reshape(-1)).reshape(flat.shape),
            lambda: settings.place_in_row(flat % n_features, n_features),
            min(settings.k, n_features * settings.feature_group.size),
            [settings.feature_group],
        )
        return flat[chosen]
