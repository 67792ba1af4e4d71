"""Raw activations of a batch to the dictionary's scale (SPEC 3), input and label alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import DataError
from pipeline.norms import as_hook_norm, scale_factor


class Normalizer:
    """Multiplies each hook point's activation by its factor.

    Args:
        dictionary: says the hook points and `norm_activation`.
        norms: {hook point: {mean_norm, mean_square, d} or mean_norm}.

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
