"""A dictionary as a map between raw activations at hook points.

A folded dictionary takes and gives raw activations. One that is carried with its run-time norm (`fold.mode: keep`) takes
and gives normalised ones: here its inputs are multiplied by their hook points' factors and its reconstructions divided by
those of theirs (SPEC section 3). token-wise and batch-wise factors of a written hook point are those of the activation
that the reconstruction stands for.

Layout: a dictionary of one read hook point gets [b, T, D]; one of several gets [b T, L, D], hook points in its own order,
and likewise for what it writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.hooks import split
from pipeline.norms import scale_factor

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.norms import HookNorm


@dataclass(frozen=True)
class RawReconstruction:
    """What a dictionary makes of a batch.

    Attributes:
        features: activations [b, T, F], or [b T, *feature_shape] with several read hook points.
        x_hats: {written hook point: [b, T, D]} in raw space.
    """

    features: Tensor
    x_hats: dict[str, Tensor]


class RawDictionary:
    """Applies a dictionary, folded or not, to raw activations.

    Args:
        dictionary: any kind; only its interface is used.
        norms: {hook point: norm}; only read if the dictionary is not folded.

    Raises:
        DataError: the dictionary is not folded and a hook point has no norm.
    """

    def __init__(self, dictionary: Dictionary, norms: Mapping[str, HookNorm] | None = None) -> None:
        self.dictionary = dictionary
        self.hooks_in, self.hooks_out = tuple(dictionary.hooks_in), tuple(dictionary.hooks_out)
        self.norm_activation = dictionary.config.norm_activation
        self.norms = dict(norms or {})
        parameter = next(dictionary.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        missing = [hook for hook in dict.fromkeys((*self.hooks_in, *self.hooks_out)) if hook not in self.norms]
        if missing and not dictionary.config.folded:
            raise DataError(
                f"the norms have no {', '.join(missing)} (they have {', '.join(self.norms) or 'nothing'}), which the unfolded "
                "dictionary needs at run time; run `dvc repro -s -f norm`"
            )

    def scale(self, hook: str, x: Tensor, mask: Tensor | None) -> Tensor | float:
        """The factor of SPEC section 3 at `hook` for activations `x` [b, T, D], of an unfolded dictionary."""
        return scale_factor(self.norm_activation, self.norms[hook], x, mask)

    @torch.no_grad()
    def __call__(
        self, inputs: Mapping[str, Tensor], labels: Mapping[str, Tensor], mask: Tensor | None = None
    ) -> RawReconstruction:
        """Encode and decode.

        Args:
            inputs: {read hook point: [b, T, D]}, raw.
            labels: {written hook point: [b, T, D]}, raw; only their norms are used, and only token-wise or batch-wise.
            mask: bool [b, T], True where a token is kept.

        Returns: features and raw reconstructions, in the dictionary's dtype.
        """
        codes, x_hat = self.dictionary.run(*self.encoder_input(inputs, mask))
        x_hats = {}
        for hook, part in split(x_hat, self.hooks_out).items():
            part = part.reshape(*labels[hook].shape)
            if not self.dictionary.config.folded:
                part = part / self.scale(hook, labels[hook].to(self.device, self.dtype), mask)
            x_hats[hook] = part
        return RawReconstruction(codes.f, x_hats)

    @torch.no_grad()
    def encoder_input(self, inputs: Mapping[str, Tensor], mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What the dictionary's encoder takes for raw activations {read hook point: [b, T, D]}, and the mask in its layout."""
        scaled = [self._scaled(inputs[hook], hook, mask) for hook in self.hooks_in]
        if len(scaled) == 1:
            return scaled[0], mask
        return torch.stack([part.flatten(0, -2) for part in scaled], dim=1), None if mask is None else mask.flatten()

    def _scaled(self, x: Tensor, hook: str, mask: Tensor | None) -> Tensor:
        x = x.to(self.device, self.dtype)
        return x if self.dictionary.config.folded else x * self.scale(hook, x, mask)
