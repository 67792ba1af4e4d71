"""Sums over what dictionaries write in place of, whatever they make of it: which tokens are massive, means, errors of PCA.

Dictionaries that have the same limits of massive tokens share them, a hook point being looked at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.evaluation.baselines import PcaMetrics
from pipeline.evaluation.massive import Limits, MassiveTokens
from pipeline.evaluation.reconstruction import LabelMean

if TYPE_CHECKING:
    from pipeline.evaluation.measured import Measured
    from pipeline.evaluation.split_tokens import SplitBatch


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

    def find(self, batch: SplitBatch, found: Mapping[str, Tensor]) -> None:
        """Look at a batch for the first time: massive tokens, and the means of {hook point: raw [b, T, D]}.

        Raises:
            NumericsError: an activation is not finite.
        """
        for limits, massive in self._massive.items():
            tokens = massive.find(batch, found)
            for hook, mean in self._means[limits].items():
                mean.update(found[hook], tokens.kept, where=f"{hook}, {batch.label}", massive=tokens.massive)

    def update(self, batch: SplitBatch, found: Mapping[str, Tensor]) -> None:
        """Count what PCA makes of a batch that was looked at."""
        for limits, massive in self._massive.items():
            tokens = massive.masks(batch)
            for pca in self._pca[limits].values():
                pca.update(found, tokens.kept, tokens.massive)

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
