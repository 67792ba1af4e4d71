"""What folding has in common over kinds: scales from norms, refusals, and the gate's part of the algebra (SPEC 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.dictionaries.config import DictionaryConfig
from pipeline.errors import ParamsError, unknown_name

FEATURE_UNITS = ("raw", "normalized")
CONSTANT_GATE = 1e-6
EPS_NORM = 1e-12


class FoldScales(NamedTuple):
    """Factors of SPEC 3, one per hook point: `inputs` in the order of hooks_in, `outputs` in that of hooks_out."""

    inputs: tuple[float, ...]
    outputs: tuple[float, ...]


def fold_scales(config: DictionaryConfig, norms: Any, feature_units: str) -> FoldScales:
    """The factors a (inputs) and b (outputs) of SPEC 4 for a dictionary with this configuration.

    Raises:
        ParamsError: the dictionary cannot be folded, or norms do not cover its hook points.
    """
    from pipeline.norms import as_hook_norm, scale_factor

    if feature_units not in FEATURE_UNITS:
        raise ParamsError(f"fold.feature_units: {unknown_name('unit', feature_units, FEATURE_UNITS)}")
    if config.folded:
        raise ParamsError("the dictionary is folded already (norm_activation: inference); fold the trained one")
    if config.norm_activation in ("token-wise", "batch-wise"):
        raise ParamsError(
            f"dictionary.norm_activation: '{config.norm_activation}' depends on the data and cannot be folded; "
            "set fold.mode: keep"
        )

    def scale(hook: str, width: int) -> float:
        if isinstance(norms, Mapping) and hook not in norms:
            raise ParamsError(f"norms: {unknown_name('hook point', hook, norms)}")
        hook_norm = as_hook_norm(norms[hook] if isinstance(norms, Mapping) else norms, width)
        return float(scale_factor(config.norm_activation, hook_norm))

    return FoldScales(
        tuple(scale(hook, config.d_in) for hook in config.hooks_in),
        tuple(scale(hook, config.width_out) for hook in config.hooks_out),
    )


def divisible(norms_F: Tensor) -> Tensor:
    """Decoder norms, at least 1e-12, to divide by."""
    return norms_F.clamp_min(EPS_NORM)


def raw_units(row_norms_F: Tensor) -> Tensor:
    """Step 4's c: the decoder rows' norms now; a feature without a decoder row takes the largest of the others."""
    largest = row_norms_F.max().clamp_min(EPS_NORM)
    return torch.where(row_norms_F > largest * EPS_NORM, row_norms_F, largest)


def fold_gate_norms_(weights: dict[str, Tensor], norms_F: Tensor, include_norm: bool) -> None:
    """Step 1 for the gate, after which z == h, or h * gate_scale: in place, the decoder norms leave it.

    With the norm in the gate nothing changes. Without it h has grown by n: theta grows too, and the topk family
    selects on h / n.
    """
    if include_norm:
        return
    if "log_jumprelu_threshold" in weights:
        weights["log_jumprelu_threshold"] += divisible(norms_F).log()
    weights["gate_scale"] = 1.0 / divisible(norms_F)


def fold_gate_units_(weights: dict[str, Tensor], c_F: Tensor, budgeted: bool) -> None:
    """Step 4 for the gate, in place: theta in the new units, the topk family's selection as trained.

    gate_scale stays only where the topk family needs it: not where it is the same for all features to 1e-6 relative.
    """
    if "log_jumprelu_threshold" in weights:
        weights["log_jumprelu_threshold"] += c_F.log()
    scale = weights.pop("gate_scale", torch.ones_like(c_F)) / c_F
    if budgeted and float(scale.max() - scale.min()) > CONSTANT_GATE * float(scale.max()):
        weights["gate_scale"] = scale
