"""Sums over what dictionaries write in place of, whatever they make of it: which tokens are massive, means, errors of PCA.

Dictionaries that have the same limits of massive tokens share them, a hook point being looked at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pipeline.evaluation.baselines import Energies, PcaMetrics
from pipeline.evaluation.massive import Limits, MassiveTokens, Places
from pipeline.evaluation.reconstruction import LabelMean

if TYPE_CHECKING:
    from pipeline.evaluation.measured import Measured
    from pipeline.evaluation.split_tokens import SplitBatch


class Found(NamedTuple):
    """What a batch's labels are by some limits.

    Attributes:
        places: of massive tokens; None: none is.
        means: {hook point: sums of the batch alone}.
    """

    places: Places | None
    means: dict[str, LabelMean]


class LabelSums:
    """The sums of all hook points that some dictionaries write.

    Args:
        measured: the dictionaries.
        device: where masks are wanted.
    """

    def __init__(self, measured: Iterable[Measured], device: torch.device) -> None:
        self._massive: dict[Limits, MassiveTokens] = {}
        self._means: dict[Limits, dict[str, LabelMean]] = {}
        self._pca: dict[Limits, dict[str, PcaMetrics]] = {}
        for one in measured:
            self._massive.setdefault(one.limits, MassiveTokens(one.raw, device))
            for hook, principal in one.principal.items():
                self._means.setdefault(one.limits, {}).setdefault(hook, LabelMean())
                self._pca.setdefault(one.limits, {}).setdefault(hook, PcaMetrics({hook: principal}))

    def find(self, batch: SplitBatch, found: Mapping[str, Tensor]) -> dict[Limits, Found]:
        """Look at a batch for the first time: massive tokens, and the means of {hook point: raw [b, T, D]}.

        Raises:
            NumericsError: an activation is not finite.
        """
        every = {}
        for limits, massive in self._massive.items():
            places = massive.places(batch, found)
            tokens = massive.masks_at(batch, places)
            means = {hook: LabelMean() for hook in self._means[limits]}
            for hook, mean in means.items():
                mean.update(found[hook], tokens.kept, where=f"{hook}, {batch.label}", massive=tokens.massive)
            every[limits] = Found(places, means)
        return every

    def add(self, every: Mapping[Limits, Found]) -> None:
        """Add what was found in a batch."""
        for limits, found in every.items():
            self._massive[limits].add(found.places)
            for hook, mean in found.means.items():
                self._means[limits][hook].add_all(mean)

    def energies(self, batch: SplitBatch, found: Mapping[str, Tensor]) -> dict[Limits, dict[str, Energies]]:
        """What PCA makes of a batch that was looked at."""
        every: dict[Limits, dict[str, Energies]] = {}
        for limits, massive in self._massive.items():
            tokens = massive.masks(batch)
            every[limits] = {}
            for pca in self._pca[limits].values():
                every[limits] |= pca.of(found, tokens.kept, tokens.massive)
        return every

    def add_energies(self, every: Mapping[Limits, Mapping[str, Energies]]) -> None:
        """Add what PCA makes of a batch."""
        for limits, found in every.items():
            for hook, energies in found.items():
                self._pca[limits][hook].add({hook: energies})

    def massive(self, one: Measured) -> MassiveTokens:
        """The massive tokens of a dictionary."""
        return self._massive[one.limits]

    def means(self, one: Measured) -> dict[str, LabelMean]:
        """The means of what it writes.

        Raises:
            NumericsError: each token is excluded.
        """
        means = {hook: self._means[one.limits][hook] for hook in one.principal}
        self.massive(one).check(next(iter(means.values())).n)
        return means

    def pca(self, one: Measured) -> PcaMetrics:
        """PCA of what it writes."""
        return PcaMetrics.joined(self._pca[one.limits][hook] for hook in one.principal)
