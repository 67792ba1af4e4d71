"""A dictionary as a map between raw activations at hook points.

A folded dictionary takes and gives raw activations. One that is carried with its run-time norm (`fold.mode: keep`) takes
and gives normalised ones: here its inputs are multiplied by their hook points' factors and its reconstructions divided by
those of theirs (SPEC 3). token-wise and batch-wise factors of a written hook point are those of the activation
that the reconstruction stands for.

Massive tokens (pipeline/norms/exclusion.py) are told by the norms in the dictionary's own configuration, so that they are the
ones that training left out. They change nothing of other tokens: a batch-wise factor is a mean without them, and of a
batch's budget of active features they take no share.

Layout: a dictionary of one read hook point gets [b, T, D]; one of several gets [b T, L, D], hook points in its own order,
and likewise for what it writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.hooks import split
from pipeline.losses.reductions import aligned
from pipeline.norms.exclusion import NormLimits
from pipeline.norms.normalizer import Normalizer, stated_norms

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Codes, Dictionary
    from pipeline.norms.hook_norm import HookNorm


@dataclass(frozen=True)
class RawReconstruction:
    """What a dictionary makes of a batch.

    Attributes:
        features: activations [b, T, F], or [b T, *feature_shape] with several read hook points.
        x_hats: {written hook point: [b, T, D]} in raw space.
    """

    features: Tensor
    x_hats: dict[str, Tensor]


def own_norms(dictionary: Dictionary) -> dict[str, HookNorm]:
    """{hook point: norm} of a dictionary's configuration; those of its hook points that are there."""
    return stated_norms(dictionary.config, dictionary.config.norms)


def without(massive: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """`mask` [...] (None: all True) without massive tokens, bool [...] (None: there are none)."""
    if massive is None:
        return mask
    return ~massive if mask is None else mask & ~massive


def run_apart(
    dictionary: Dictionary, x: Tensor, mask: Tensor | None, massive: Tensor | None, padding: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Features and reconstructions of `dictionary.run`, in which massive tokens take nothing from others.

    Where features depend on the batch (BatchTopK), other tokens are encoded without massive ones; these among all.

    Args:
        x, mask, padding: as for `run`.
        massive: bool [...], the mask's shape; None: none is.

    Returns: f [..., F] and x_hat [..., d_out].
    """

    def run(kept: Tensor | None) -> tuple[Codes, Tensor]:
        return dictionary.run(x, kept) if padding is None else dictionary.run(x, kept, padding=padding)

    codes, x_hat = run(mask)
    if massive is None or not dictionary.is_batch_dependent:
        return codes.f, x_hat
    others, others_hat = run(without(massive, mask))
    f = torch.where(aligned(massive, codes.f), codes.f, others.f)
    return f, torch.where(aligned(massive, x_hat), x_hat, others_hat)


class RawDictionary:
    """Applies a dictionary, folded or not, to raw activations.

    Args:
        dictionary: any kind; only its interface is used.
        norms: {hook point: norm}; only read if the dictionary is not folded.

    Attributes:
        massive: limits above which a token is massive; none where the configuration has no median norm.
        excluded: those of the rule activations.max_norm_factor that the dictionary was trained with; none without it.

    Raises:
        DataError: the dictionary is not folded and a hook point has no norm.
    """

    def __init__(self, dictionary: Dictionary, norms: Mapping[str, HookNorm] | None = None) -> None:
        self.dictionary = dictionary
        self.hooks_in, self.hooks_out = tuple(dictionary.hooks_in), tuple(dictionary.hooks_out)
        self.normalizer = Normalizer(dictionary.config, norms or {})
        own = own_norms(dictionary)
        self.massive, self.excluded = NormLimits.massive(own), NormLimits.excluded(own)
        parameter = next(dictionary.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    @property
    def hooks(self) -> tuple[str, ...]:
        """All hook points, read and written, each once."""
        return tuple(dict.fromkeys((*self.hooks_in, *self.hooks_out)))

    @property
    def hooks_to_look_at(self) -> tuple[str, ...]:
        """The hook points whose activations say what the features are and which tokens are massive."""
        return tuple(dict.fromkeys((*self.hooks_in, *self.massive.limits)))

    @torch.no_grad()
    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        mask: Tensor | None = None,
        massive: Tensor | None = None,
    ) -> RawReconstruction:
        """Encode and decode.

        Args:
            inputs: {read hook point: [b, T, D]}, raw.
            labels: {written hook point: [b, T, D]}, raw; only their norms are used, and only token-wise or batch-wise.
            mask: bool [b, T], True where a token is kept.
            massive: bool [b, T], tokens that change nothing of others; None: there are none.

        Returns: features and raw reconstructions, in the dictionary's dtype.
        """
        x, kept = self.encoder_input(inputs, mask, massive)
        flat = massive.flatten() if massive is not None and len(self.hooks_in) > 1 else massive
        f, x_hat = run_apart(self.dictionary, x, kept, flat)
        x_hats = {}
        for hook, part in split(x_hat, self.hooks_out).items():
            part = part.reshape(*labels[hook].shape)
            if not self.dictionary.config.folded:
                part = part / self.normalizer.factor(hook, labels[hook].to(self.device, self.dtype), without(massive, mask))
            x_hats[hook] = part
        return RawReconstruction(f, x_hats)

    @torch.no_grad()
    def encoder_input(
        self, inputs: Mapping[str, Tensor], mask: Tensor | None = None, massive: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What the dictionary's encoder takes for raw activations {read hook point: [b, T, D]}, and the mask in its layout."""
        ordinary = without(massive, mask)
        scaled = [self._scaled(inputs[hook], hook, ordinary) for hook in self.hooks_in]
        if len(scaled) == 1:
            return scaled[0], mask
        return torch.stack([part.flatten(0, -2) for part in scaled], dim=1), None if mask is None else mask.flatten()

    def _scaled(self, x: Tensor, hook: str, mask: Tensor | None) -> Tensor:
        return self.normalizer.scaled(hook, x.to(self.device, self.dtype), mask)
