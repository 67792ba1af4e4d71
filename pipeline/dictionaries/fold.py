"""Folding, once for every kind: activation and decoder norms go into the weights (SPEC 4).

    1. the decoder norm n goes into the encoder: W_E, b_E times n; decoder rows over n; the gate as it was
    2. the factors of the activations: what reads times a, what writes over b (`Dictionary.scale_activations_`)
    3. with raw units each feature in the unit in which its decoder rows have length 1

A kind says what `scale_activations_` and the interface's norms and scalings are; nothing here knows one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.errors import ParamsError, unknown_name
from pipeline.norms.normalizer import Normalizer
from pipeline.params.choices import FEATURE_UNITS, NORMS_OF_THE_DATA

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary

CONSTANT_GATE = 1e-6
EPS_NORM = 1e-12


def divisible(norms_F: Tensor) -> Tensor:
    """Decoder norms, at least 1e-12, to divide by."""
    return norms_F.clamp_min(EPS_NORM)


def constant_factors(dictionary: Dictionary, norms: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The factors of SPEC 3 that can be folded: those of hooks_in, and those of hooks_out.

    Raises:
        ParamsError: the dictionary is folded already, or its norm depends on the data.
        DataError: a hook point without a norm.
    """
    config = dictionary.config
    if config.folded:
        raise ParamsError("the dictionary is folded already (norm_activation: inference); fold the trained one")
    if config.norm_activation in NORMS_OF_THE_DATA:
        raise ParamsError(
            f"dictionary.norm_activation: '{config.norm_activation}' depends on the data and cannot be folded; "
            "set fold.mode: keep"
        )
    normalizer = Normalizer(config, norms)

    def factors(hooks: tuple[str, ...]) -> tuple[float, ...]:
        return tuple(float(normalizer.factor(hook)) for hook in hooks)

    return factors(config.hooks_in), factors(config.hooks_out)


@torch.no_grad()
def fold_(dictionary: Dictionary, a: tuple[float, ...], b: tuple[float, ...], *, include_norm: bool, raw_units: bool) -> None:
    """Fold the weights in place.

    Args:
        dictionary: in float64.
        a, b: factors of what is read and of what is written.
        include_norm: the decoder norm was part of the gate (sparsity_include_decoder_norm).
        raw_units: an activation is the length of what its feature adds in the model's units; otherwise as trained, times
            the decoder norm.
    """
    norms = dictionary.decoder_norms()
    _rescale_(dictionary, norms if include_norm else divisible(norms), 1.0 / divisible(norms))
    theta = dictionary.log_jumprelu_threshold if dictionary.activation.has_threshold else None
    if not include_norm:
        # h has grown by n: so does theta, and the topk family selects on h / n.
        dictionary.gate_scale = (1.0 if dictionary.gate_scale is None else dictionary.gate_scale) / divisible(norms)
        if theta is not None:
            theta.add_(divisible(norms).log())
    dictionary.scale_activations_(a, b)
    unit = torch.ones_like(norms)
    if raw_units:
        lengths = dictionary.decoder_lengths()
        largest = lengths.max().clamp_min(EPS_NORM)  # what a feature without decoder rows takes
        unit = torch.where(lengths > largest * EPS_NORM, lengths, largest)
    _rescale_(dictionary, unit, 1.0 / unit)
    if theta is not None:
        theta.add_(unit.log())
    scale = (torch.ones_like(unit) if dictionary.gate_scale is None else dictionary.gate_scale) / unit
    # The topk family's selection stays as trained; a scale that all features share does not act on it.
    needed = dictionary.activation.budgeted and float(scale.max() - scale.min()) > CONSTANT_GATE * float(scale.max())
    dictionary.gate_scale = scale if needed else None


def _rescale_(dictionary: Dictionary, encoder: Tensor, decoder: Tensor) -> None:
    dictionary.scale_encoder_(encoder)
    dictionary.encoder_bias().mul_(encoder)
    dictionary.scale_decoder_(decoder)


def folded(dictionary: Dictionary, norms: Any, feature_units: str) -> Dictionary:
    """`Dictionary.fold`; arguments and errors there."""
    if feature_units not in FEATURE_UNITS:
        raise ParamsError(f"fold.feature_units: {unknown_name('unit', feature_units, FEATURE_UNITS)}")
    a, b = constant_factors(dictionary, norms)
    dtype = torch.float64 if next(dictionary.parameters()).dtype == torch.float64 else torch.float32
    include_norm = dictionary.config.sparsity_include_decoder_norm
    made = dictionary.absorbed().rebuilt_as(torch.float64)
    made = made.rebuilt(made.state_dict(), norm_activation="inference", folded=True, sparsity_include_decoder_norm=False)
    fold_(made, a, b, include_norm=include_norm, raw_units=feature_units == "raw")
    return made.rebuilt_as(dtype)
