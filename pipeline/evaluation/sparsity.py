"""How many features are active, and which: exact counts over tokens.

A feature is active on a token where f > 0. L0 of a token is its number of active features (over all layers where the
dictionary has several). The density of a feature is the share of the evaluated tokens on which it is active. Masked
positions count nowhere.

Massive tokens (pipeline/norms/exclusion.py) may open features that no other token opens. They are counted apart, so that L0 and
dead features are known without them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.dictionaries.sharding import features_of_all
from pipeline.errors import NumericsError
from pipeline.processes import ONE_PROCESS, Reductions

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DENSE_ABOVE = 1e-1
COUNTED_ABOVE = ("1e-1", "1e-2")
COUNTED_BELOW = ("1e-5", "1e-6", "1e-7")
HISTOGRAM_LOW, HISTOGRAM_STEP = -7.0, 0.1  # log10 density; the histogram ends at 0 (active on every token)


def quantile_key(name: str, q: float) -> str:
    """`<name>_q05` for q = 0.05."""
    return f"{name}_q{round(100 * q):02d}"


def quantiles(values: Tensor, name: str, qs: tuple[float, ...] = QUANTILES) -> dict[str, float]:
    """Quantiles of a vector, linearly interpolated, in float64, as `{name}_q05` and so on."""
    ordered = values.detach().to(torch.float64).flatten().sort().values
    return {quantile_key(name, q): _interpolated(ordered.tolist(), q) for q in qs}


def _interpolated(ordered: list[float], q: float) -> float:
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def histogram_quantile(counts: Tensor, q: float) -> float:
    """Linearly interpolated quantile of integer values, `counts[v]` tokens having the value v."""
    cumulative = counts.to(torch.int64).cumsum(0)
    place = q * (int(cumulative[-1]) - 1)
    low = int(place)
    at = torch.searchsorted(cumulative, torch.tensor([low, low + 1], device=counts.device), right=True)
    at = at.clamp_max(len(counts) - 1)
    return float(at[0]) + (place - low) * float(at[1] - at[0])


def _with_counts(counts: Tensor, more: Tensor) -> Tensor:
    """The sums of two vectors of counts, the shorter one being followed by zeros."""
    short, long = sorted((counts, more), key=len)
    found = long.clone()
    found[: len(short)] += short
    return found


def _sum(before: Tensor | None, added: Tensor) -> Tensor:
    return added if before is None else before + added


@dataclass(frozen=True)
class DensityHistogram:
    """Features by log10 density: `counts[i]` features between `edges[i]` and `edges[i + 1]`; `never` were not active.

    The first bin also holds every active feature below the lowest edge.
    """

    edges: list[float]
    counts: list[int]
    never: int


class SparsityMetrics:
    """Exact counts of active features, on the CPU.

    Args:
        feature_shape: (F,), or (L, F) for a dictionary with features per layer; of the features that this process holds.
        layers: L names, whose L0 and dead features are reported apart too.
    """

    def __init__(self, feature_shape: tuple[int, ...], layers: Sequence[str] = ()) -> None:
        self.feature_shape = tuple(feature_shape)
        self.layers = tuple(layers) if len(self.feature_shape) > 1 else ()
        self.tokens = 0
        self.massive_tokens = 0
        self.active: Tensor | None = None
        self.massive_active: Tensor | None = None
        self.sums: Tensor | None = None
        self.l0_counts = torch.zeros(1, dtype=torch.int64)
        self.layer_counts = [torch.zeros(1, dtype=torch.int64) for _ in self.layers]

    def update(
        self,
        f: Tensor,
        mask: Tensor | None = None,
        massive: Tensor | None = None,
        feature_group: Reductions = ONE_PROCESS,
    ) -> None:
        """Add feature activations `f` [..., *feature_shape]; `mask` [...] is True where the token is kept.

        Args:
            massive: bool [...], True for a massive token; None: none is.
            feature_group: over the processes that add their features of the same tokens.
        """
        f = f.detach().reshape(-1, *self.feature_shape)
        massive = None if massive is None else massive.reshape(-1)
        if mask is not None and not bool(mask.all()):
            f = f[mask.reshape(-1)]
            massive = None if massive is None else massive[mask.reshape(-1)]
        active = f > 0
        if massive is not None:
            apart = active[massive]
            self.massive_active = _sum(self.massive_active, apart.sum(0).cpu())
            self.massive_tokens += len(apart)
        of_tokens = feature_group.sum([active.flatten(1).sum(1), *(active[:, i].sum(1) for i in range(len(self.layers)))])
        counts, *of_layers = (torch.bincount(each).cpu() for each in of_tokens)
        self.l0_counts = _with_counts(self.l0_counts, counts)
        self.layer_counts = [_with_counts(*both) for both in zip(self.layer_counts, of_layers, strict=True)]
        self.active = _sum(self.active, active.sum(0).cpu())
        self.sums = _sum(self.sums, f.sum(0, dtype=torch.float64).cpu())
        self.tokens += len(f)

    def add_all(self, other: SparsityMetrics) -> None:
        """Add what another one has counted of other tokens."""
        if other.massive_active is not None:
            self.massive_active = _sum(self.massive_active, other.massive_active)
        if other.active is not None and other.sums is not None:
            self.active, self.sums = _sum(self.active, other.active), _sum(self.sums, other.sums)
        self.massive_tokens, self.tokens = self.massive_tokens + other.massive_tokens, self.tokens + other.tokens
        self.l0_counts = _with_counts(self.l0_counts, other.l0_counts)
        self.layer_counts = [_with_counts(*both) for both in zip(self.layer_counts, other.layer_counts, strict=True)]

    def put_together(self, feature_group: Reductions) -> None:
        """What other processes have counted of their features of the same tokens, beside this one's: nothing is added later."""
        if feature_group.size == 1:
            return
        self.active, self.sums, self.massive_active = (
            None if each is None else features_of_all(each, feature_group)
            for each in (self.active, self.sums, self.massive_active)
        )
        self.feature_shape = (*self.feature_shape[:-1], self.feature_shape[-1] * feature_group.size)

    def _counted(self) -> tuple[Tensor, Tensor]:
        if self.active is None or self.sums is None or self.tokens == 0:
            raise NumericsError("no token to evaluate: every position is masked; evaluate on other tokens")
        if not bool(torch.isfinite(self.sums).all()):
            raise NumericsError("a feature activation is not finite")
        return self.active, self.sums

    def density(self) -> Tensor:
        """Share of the evaluated tokens on which each feature is active, float64, `feature_shape`, on the CPU."""
        return (self._counted()[0].to(torch.float64) / self.tokens).cpu()

    def _ordinary(self) -> tuple[Tensor, int] | None:
        """Active tokens of each feature, and their number, massive ones left out; None: every token is massive."""
        active, n = self._counted()[0], self.tokens - self.massive_tokens
        if n == 0:
            return None
        return (active if self.massive_active is None else active - self.massive_active), n

    def mean_when_active(self) -> Tensor:
        """Mean activation over the tokens on which the feature is active (0 if never), float64, `feature_shape`."""
        active, sums = self._counted()
        return (sums / active.clamp_min(1)).cpu()

    def l0_mean(self) -> float:
        """Mean over tokens of the number of active features."""
        self._counted()
        values = torch.arange(len(self.l0_counts), dtype=torch.float64)
        return float((values * self.l0_counts).sum()) / self.tokens

    def l0_mean_ordinary(self) -> float:
        """That over the tokens that are not massive; where every one is, over all."""
        found = self._ordinary()
        return self.l0_mean() if found is None else int(found[0].sum()) / found[1]

    def histogram(self) -> DensityHistogram:
        """Features by log10 of their density over the tokens that are not massive, in steps of 0.1 from 1e-7 to 1."""
        active, n = self._ordinary() or (self._counted()[0], self.tokens)
        density = (active.to(torch.float64) / n).cpu().flatten()
        alive = density[density > 0].log10()
        n_bins = round(-HISTOGRAM_LOW / HISTOGRAM_STEP)
        place = ((alive - HISTOGRAM_LOW) / HISTOGRAM_STEP).floor().long().clamp(0, n_bins - 1)
        edges = [round(HISTOGRAM_LOW + i * HISTOGRAM_STEP, 6) for i in range(n_bins + 1)]
        return DensityHistogram(
            edges=edges,
            counts=torch.bincount(place, minlength=n_bins).tolist(),
            never=int((density == 0).sum()),
        )

    def results(self) -> dict[str, float]:
        """The metrics.

        l0_mean, l0_q05 ... l0_q95: mean and quantiles over tokens of L0.
        dead_features, dead_fraction: features never active in the evaluated tokens; dense_fraction: density > 0.1.
        features_above_*, features_below_*: features whose density is above or below; a dead one is below each.
        l1_mean: mean over tokens of the sum of f.
        mean_activation_when_active: sum of f over its positive entries / their number, over all tokens and features.
        l0_mean_ordinary, dead_fraction_ordinary: over the tokens that are not massive; left out where every one is.
        With layers also l0_mean, l0_q05 ... l0_q95, dead_fraction, dense_fraction, l0_mean_ordinary and
        dead_fraction_ordinary, each as <name>.<layer>. What is not named by layer is in feature_density.safetensors, which has
        every feature's density and mean activation.

        Raises:
            NumericsError: no token was kept, or an activation is not finite.
        """
        active, sums = self._counted()
        density = self.density().flatten()
        n_active = int(active.sum())
        results = {"l0_mean": self.l0_mean()}
        results.update({quantile_key("l0", q): histogram_quantile(self.l0_counts, q) for q in QUANTILES})
        n_dead = int((density == 0).sum())
        results["dead_features"] = float(n_dead)
        results["dead_fraction"] = n_dead / len(density)
        results["dense_fraction"] = float((density > DENSE_ABOVE).sum()) / len(density)
        for bound in COUNTED_ABOVE:
            results[f"features_above_{bound}"] = float((density > float(bound)).sum())
        for bound in COUNTED_BELOW:
            results[f"features_below_{bound}"] = float((density < float(bound)).sum())
        results["l1_mean"] = float(sums.sum()) / self.tokens
        results["mean_activation_when_active"] = float(sums.sum()) / max(n_active, 1)
        for i, name in enumerate(self.layers):
            share = active[i].double() / self.tokens
            results[f"l0_mean.{name}"] = float(active[i].sum()) / self.tokens
            results |= {f"{quantile_key('l0', q)}.{name}": histogram_quantile(self.layer_counts[i], q) for q in QUANTILES}
            results[f"dead_fraction.{name}"] = float((share == 0).double().mean())
            results[f"dense_fraction.{name}"] = float((share > DENSE_ABOVE).double().mean())
        return results | self._ordinary_results()

    def _ordinary_results(self) -> dict[str, float]:
        found = self._ordinary()
        if found is None:
            return {}
        active, n = found
        n_dead = int((active == 0).sum())
        results = {"l0_mean_ordinary": self.l0_mean_ordinary(), "dead_fraction_ordinary": n_dead / active.numel()}
        for i, name in enumerate(self.layers):
            results[f"l0_mean_ordinary.{name}"] = int(active[i].sum()) / n
            results[f"dead_fraction_ordinary.{name}"] = float((active[i] == 0).double().mean())
        return results
