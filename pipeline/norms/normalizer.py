"""The factor that normalises a hook point, and the one place that applies it (SPEC 3).

It multiplies the hook point's activations, as input and as label; reconstructions are divided by it:

    token-wise    sqrt(D) / ||x_token||
    batch-wise    sqrt(D) / mean_b ||x_b||
    dataset-wise  sqrt(D) / m_p
    dataset-rms   1 / sqrt(E ||x||^2)
    inference     1
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.errors import DataError, ParamsError, unknown_name
from pipeline.hooks import split, stacked
from pipeline.norms.exclusion import NormLimits
from pipeline.norms.hook_norm import NEXT, HookNorm, hook_norms
from pipeline.params.choices import CONSTANT_NORMS, INFERENCE, NORM_ACTIVATIONS, NORMS_OF_THE_DATA
from pipeline.processes import ONE_PROCESS, Reductions

SHORTENED = 3.0  # medians: the length that a massive token counts as in a step, where no rule excludes it
SMALLEST = 1e-12


class HookPoints(Protocol):
    """What says the hook points and how they are scaled: a dictionary's configuration."""

    @property
    def norm_activation(self) -> str: ...
    @property
    def d_in(self) -> int: ...
    @property
    def hooks_in(self) -> tuple[str, ...]: ...
    @property
    def hooks_out(self) -> tuple[str, ...]: ...
    @property
    def d_out(self) -> int: ...


def widths_of(config: HookPoints) -> dict[str, int]:
    """{hook point: width} of what is read and written."""
    return {**dict.fromkeys(config.hooks_in, config.d_in), **dict.fromkeys(config.hooks_out, config.d_out)}


def stated_norms(config: HookPoints, norms: Mapping[str, Any] | None) -> dict[str, HookNorm]:
    """{hook point: norm} of a dictionary's configuration, of those of its hook points that `norms` has.

    Raises:
        DataError: a norm that cannot be.
    """
    known = norms or {}
    return hook_norms(known, {hook: width for hook, width in widths_of(config).items() if hook in known})


def scale_factor(
    norm_activation: str,
    hook_norm: HookNorm | None,
    x: Tensor | None = None,
    mask: Tensor | None = None,
    reductions: Reductions = ONE_PROCESS,
) -> float | Tensor:
    """The factor that normalises a hook point's activations.

    Args:
        norm_activation: token-wise, batch-wise, dataset-wise, dataset-rms or inference.
        hook_norm: of the hook point; read by the dataset ones only.
        x: [..., D]; read by token-wise and batch-wise only.
        mask: bool [...], the tokens that batch-wise takes the mean over.
        reductions: over the processes that hold the rest of the batch.

    Returns:
        a float, or a float32 tensor that broadcasts over `x`: [..., 1].

    Raises:
        ParamsError: unknown name.
        DataError: what it needs was not given.
    """
    if norm_activation == INFERENCE:
        return 1.0
    if norm_activation in CONSTANT_NORMS:
        if hook_norm is None:
            raise DataError(f"norm_activation {norm_activation} needs the norms of the hook point; {NEXT}")
        if norm_activation == "dataset-wise":
            return math.sqrt(hook_norm.d) / hook_norm.mean_norm
        if hook_norm.mean_square is None:
            raise DataError(
                f"norm_activation {norm_activation} needs the mean square of the hook point's norms; {NEXT}, or give it"
            )
        return 1.0 / math.sqrt(hook_norm.mean_square)
    if norm_activation not in NORMS_OF_THE_DATA:
        raise ParamsError(unknown_name("norm_activation", norm_activation, (*NORM_ACTIVATIONS, INFERENCE)))
    if x is None:
        raise DataError(f"norm_activation {norm_activation} needs the activations")
    with torch.autocast(x.device.type, enabled=False):
        norms = torch.linalg.vector_norm(x if x.dtype == torch.float64 else x.float(), dim=-1, keepdim=True)
        if norm_activation == "batch-wise":
            if mask is None and reductions.size == 1:
                norms = norms.mean()
            else:
                kept = torch.ones_like(norms) if mask is None else mask.unsqueeze(-1).to(norms.dtype)
                total, n_kept = reductions.sum([(norms * kept).sum(), kept.sum()])
                norms = total / n_kept.clamp(min=1.0)
            norms = norms.reshape((1,) * x.ndim)
        return math.sqrt(x.shape[-1]) / norms.clamp(min=SMALLEST)


class Normalizer:
    """Multiplies each hook point's activation by its factor, and tells massive tokens.

    Args:
        config: says the hook points and `norm_activation`.
        norms: {hook point: {mean_norm, mean_square, d, ...} or mean_norm}; `inference` needs none.
        reductions: over the processes that hold the rest of each batch.

    Attributes:
        norms: of the hook points.
        excluded: limits of what activations.max_norm_factor leaves out; without a rule there are none.
        massive: limits above which a token is massive, also without a rule.

    Raises:
        DataError: a hook point has no norm.
    """

    def __init__(self, config: HookPoints, norms: Any, reductions: Reductions = ONE_PROCESS) -> None:
        self.norm_activation, self._reductions = config.norm_activation, reductions
        self.hooks_in, self.hooks_out = tuple(config.hooks_in), tuple(config.hooks_out)
        widths = widths_of(config)
        if self.norm_activation == INFERENCE:
            norms = norms or {}
            widths = {hook: width for hook, width in widths.items() if hook in norms}
        self.norms = hook_norms(norms, widths)
        self.excluded, self.massive = NormLimits.excluded(self.norms), NormLimits.massive(self.norms)

    def factor(self, hook: str, x: Tensor | None = None, mask: Tensor | None = None) -> float | Tensor:
        """The factor of a hook point; arguments as for :func:`scale_factor`."""
        return scale_factor(self.norm_activation, self.norms.get(hook), x, mask, self._reductions)

    def scaled(self, hook: str, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Raw `x` [..., d] of a hook point times its factor."""
        return x if self.norm_activation == INFERENCE else x * self.factor(hook, x, mask)

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

    def _all_scaled(self, hooks: Sequence[str], x: Tensor, mask: Tensor | None) -> Tensor:
        return stacked({hook: self.scaled(hook, part, mask) for hook, part in split(x, hooks).items()}, hooks)

    def inputs(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalised input of raw `x` [..., d_in]; `mask` [...] for batch-wise means."""
        return self._all_scaled(self.hooks_in, x, mask)

    def labels(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalised label of raw `y` [..., d_out]."""
        return self._all_scaled(self.hooks_out, y, mask)

    def outputs(self, x_hat: Tensor) -> Tensor:
        """Raw reconstruction of a normalised one [..., d_out]; of factors that do not depend on the data."""
        parts = {hook: part / self.factor(hook) for hook, part in split(x_hat, self.hooks_out).items()}
        return stacked(parts, self.hooks_out)

    def __call__(self, inputs: Tensor, labels: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both; one tensor for both where the raw ones are one."""
        x = self.inputs(inputs, mask)
        return x, (x if labels is inputs and self.hooks_in == self.hooks_out else self.labels(labels, mask))
