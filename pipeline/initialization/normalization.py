"""Raw activations of a batch to the dictionary's scale (SPEC 3), input and label alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import DataError
from pipeline.exclusion import NormLimits
from pipeline.hooks import split, stacked
from pipeline.norms import as_hook_norm, scale_factor

SHORTENED = 3.0  # medians: the length that a massive token counts as in a step, where no rule excludes it


class Normalizer:
    """Multiplies each hook point's activation by its factor, and tells massive tokens.

    Args:
        dictionary: says the hook points and `norm_activation`.
        norms: {hook point: {mean_norm, mean_square, d, ...} or mean_norm}.

    Attributes:
        norms: of the dictionary's hook points.
        excluded: limits of what activations.max_norm_factor leaves out; without a rule there are none.
        massive: limits above which a token is massive, also without a rule.

    Raises:
        DataError: a hook point has no norm.
    """

    def __init__(self, dictionary: Dictionary, norms: Mapping[str, Any]) -> None:
        config = dictionary.config
        self.norm_activation = config.norm_activation
        self.hooks_in, self.hooks_out = dictionary.hooks_in, dictionary.hooks_out
        widths = {**dict.fromkeys(self.hooks_in, config.d_in), **dict.fromkeys(self.hooks_out, config.width_out)}
        missing = [hook for hook in widths if hook not in norms]
        if missing:
            raise DataError(
                f"norms: no activation norm for hook point '{missing[0]}' (there are: {', '.join(norms) or 'none'}); "
                "run `dvc repro -s -f norm`"
            )
        self.norms = {hook: as_hook_norm(norms[hook], width) for hook, width in widths.items()}
        self.excluded, self.massive = NormLimits.excluded(self.norms), NormLimits.massive(self.norms)

    def by_hook(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """{hook point: [..., d]} of raw inputs and labels."""
        return split(inputs, self.hooks_in) | ({} if labels is inputs else split(labels, self.hooks_out))

    def shortened(self, inputs: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a step trains on where no rule excludes massive tokens: these as if SHORTENED medians long.

        Args:
            inputs, labels: raw.
            mask: bool [...], True for a kept token; None: all.

        Returns: inputs and labels (themselves where no token is massive), and the mask without massive tokens.
        """
        if self.excluded.limits or not self.massive.limits:
            return inputs, labels, mask
        above = self.massive.above(self.by_hook(inputs, labels))
        # On the CPU looking is free and saves the work; elsewhere it would wait for the device.
        if above is None or (above.device.type == "cpu" and not bool(above.any())):
            return inputs, labels, mask
        x = self._shortened(inputs, self.hooks_in)
        y = x if labels is inputs else self._shortened(labels, self.hooks_out)
        return x, y, ~above if mask is None else mask & ~above

    def _shortened(self, x: Tensor, hooks: Sequence[str]) -> Tensor:
        parts = {hook: self.massive.shortened(hook, part, self._length(hook)) for hook, part in split(x, hooks).items()}
        return stacked(parts, hooks)

    def _length(self, hook: str) -> float:
        return SHORTENED * (self.norms[hook].median_norm or 0.0)

    def _scaled(self, hooks: Sequence[str], x: Tensor, mask: Tensor | None) -> Tensor:
        if len(hooks) == 1:
            return x * scale_factor(self.norm_activation, self.norms[hooks[0]], x, mask)
        parts = [
            part * scale_factor(self.norm_activation, self.norms[hook], part, mask)
            for hook, part in zip(hooks, x.unbind(-2), strict=True)
        ]
        return torch.stack(parts, dim=-2)

    def inputs(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalised input of raw `x` [..., d_in]; `mask` [...] for batch-wise means."""
        return self._scaled(self.hooks_in, x, mask)

    def labels(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalised label of raw `y` [..., d_out]."""
        return self._scaled(self.hooks_out, y, mask)

    def __call__(self, inputs: Tensor, labels: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both; one tensor for both where the raw ones are one."""
        x = self.inputs(inputs, mask)
        return x, (x if labels is inputs and self.hooks_in == self.hooks_out else self.labels(labels, mask))
