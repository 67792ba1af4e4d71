"""The step of a dictionary by its chosen entries: [B, F] is written and read by the encoder product and the selection alone.

Encoder and gate without differentiation, then the N chosen entries: their values with a gradient that touches their weights
only, and reconstructions summed from them. Where entries do not pay, or a kind has no such way, it is the dense step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.activation_functions.interface import ActivationFunction, GateSettings
from pipeline.dictionaries.codes import Codes, Entries, ThresholdSettings
from pipeline.dictionaries.fold import EPS_NORM
from pipeline.dictionaries.masks import kept_tokens
from pipeline.kernels.entries import EntryKernels, Places
from pipeline.kernels.selected import selected_linear
from pipeline.kernels.threshold_gradient import with_threshold_gradient

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary, Gate, LinearBranch


def step_codes(
    dictionary: Dictionary, x: Tensor, mask: Tensor | None, gate: Gate, padding: Tensor | None, *, decoded_only: bool
) -> Codes:
    """`Dictionary.step_codes`, whose arguments these are."""
    activation = gate.activation or dictionary.activation
    settings = dictionary.gate_settings(kept_tokens(mask, padding), gate, x.device)
    assert settings.kernels is not None
    dtype, budgeted = next(dictionary.parameters()).dtype, activation.budgeted
    share = _share(dictionary, activation, settings, gate)
    possible = budgeted or (decoded_only and _finds_entries(dictionary, activation))
    if share is None or not (possible and _agree(type(dictionary), "decode_linear", "decode_chosen")):
        return dictionary.codes(x, mask, gate, padding)
    if not settings.kernels.entries_pay(dtype, share):
        return dictionary.codes(x, mask, gate, padding)
    agree = all(_agree(type(dictionary), "pre_activations", name) for name in ("linear_branches", "combined"))
    branches = dictionary.linear_branches(x) if agree else None
    if branches is not None:
        chosen = _chosen(dictionary, x, branches, activation, settings, padding)
        return dictionary.codes(x, mask, gate, padding) if chosen is None else chosen
    if budgeted:
        return _chosen_of_dense(dictionary, x, activation, settings, padding)
    return dictionary.codes(x, mask, gate, padding)


def _share(dictionary: Dictionary, activation: ActivationFunction, settings: GateSettings, gate: Gate) -> float | None:
    """Chosen share of the features, as far as it is known before they are chosen; None: not at all."""
    if activation.budgeted:
        return settings.k / dictionary.config.k_layers / dictionary.config.d_sae
    assert settings.kernels is not None
    return 0.0 if settings.kernels.counts_freely else gate.share


def _finds_entries(dictionary: Dictionary, activation: ActivationFunction) -> bool:
    """Whether a gate without budget can work on its entries: thresholds need the decoder as a matrix for their gradient."""
    return not activation.has_threshold or dictionary.decoder_matrix() is not None


@functools.cache
def _agree(cls: type[Dictionary], dense: str, sparse: str) -> bool:
    """Whether a way by entries belongs to the dense one: not where a subclass has overridden the dense one alone."""
    owner, other = (next(c for c in cls.__mro__ if name in c.__dict__) for name in (dense, sparse))
    return other.__name__ == "Dictionary" or issubclass(other, owner)


def _chosen_of_dense(
    dictionary: Dictionary, x: Tensor, activation: ActivationFunction, settings: GateSettings, padding: Tensor | None
) -> Codes:
    """Chosen entries of an encoder that is not linear: it is differentiated as a whole."""
    h, norms = dictionary.pre_activations(x, padding), dictionary.decoder_norms()
    scale = dictionary.gating_scale(norms)
    z = h if scale is None else h * scale
    chosen = activation.selection(z.detach(), settings)
    assert chosen is not None  # budgeted
    places = _places(chosen.flat, z, math.prod(dictionary.feature_shape), settings)
    values = torch.where(chosen.active, h.reshape(-1).gather(0, chosen.flat), 0.0)
    return Codes(h, z, Entries(values, chosen.flat, places), norms)


def _places(flat: Tensor, z: Tensor, n_columns: int, settings: GateSettings) -> Places:
    assert settings.kernels is not None
    return Places(flat // n_columns, flat % n_columns, z.numel() // n_columns, n_columns, settings.kernels)


def _chosen(
    dictionary: Dictionary,
    x: Tensor,
    branches: Sequence[LinearBranch],
    activation: ActivationFunction,
    settings: GateSettings,
    padding: Tensor | None,
) -> Codes | None:
    """Chosen entries of a linear encoder; None where they are too many to pay."""
    norms, n_features = dictionary.decoder_norms(), dictionary.n_features
    scale = dictionary.gating_scale(norms)
    with torch.no_grad():  # the scale goes into the weights, which are fewer than the gating values
        products = [dictionary.branch_product(b, scale if b is branches[0] else None) for b in branches]
        gating = dictionary.combined(products).reshape(*x.shape[: x.ndim - dictionary.input_dims], *dictionary.feature_shape)
    chosen = activation.selection(gating, settings)
    if chosen is None or not (activation.budgeted or _pay(settings.kernels, branches[0].W.dtype, chosen.flat, gating)):
        return None
    flat, values, active = chosen
    places = _places(flat, gating, math.prod(dictionary.feature_shape), settings)
    own = places.with_rows(flat // n_features, gating.numel() // n_features)
    outputs = [values] if len(products) == 1 else [product.reshape(-1).index_select(0, flat) for product in products]
    outputs = [output.to(branches[0].W.dtype) for output in outputs]
    if scale is not None:
        outputs[0] = outputs[0] / scale.detach().clamp_min(EPS_NORM).reshape(-1).index_select(0, places.columns)
    values = dictionary.combined(
        [selected_linear(b.x, b.W, b.b, out, own, b.centre) for b, out in zip(branches, outputs, strict=True)]
    )
    entries = Entries(torch.where(active, values, 0.0), flat, places)
    codes = Codes(
        lambda: dictionary.pre_activations(x, padding), lambda h: h if scale is None else h * scale, entries, norms, gating
    )
    if settings.log_threshold is not None and activation.has_threshold:
        codes.thresholds = ThresholdSettings(settings.log_threshold, scale, settings.window, settings.mask)
    return codes


def _pay(kernels: EntryKernels | None, dtype: torch.dtype, flat: Tensor, gating: Tensor) -> bool:
    return kernels is not None and kernels.entries_pay(dtype, len(flat) / max(gating.numel(), 1))


def decoded(dictionary: Dictionary, codes: Codes, first: int, end: int) -> Tensor:
    """What the features first to end - 1 (of each layer) add up to, [..., d_out]."""
    n_features = dictionary.feature_shape[-1]
    every = (first, end) == (0, n_features)
    if codes.entries is None:
        return dictionary.decode_linear(codes.f) if every else dictionary.decode_between(codes.f, first, end)
    values, places = codes.entries.values, codes.entries.places
    if not every:
        feature = places.columns % n_features
        kept, places = places.only((feature >= first) & (feature < end))
        values = values[kept]
    x_hat = dictionary.decode_chosen(values, places)
    if codes.thresholds is not None:
        x_hat = _with_threshold_gradient(dictionary, x_hat, codes, codes.thresholds)
    return x_hat.unflatten(0, codes.shape[: len(codes.shape) - len(dictionary.feature_shape)])


def _with_threshold_gradient(dictionary: Dictionary, x_hat: Tensor, codes: Codes, settings: ThresholdSettings) -> Tensor:
    log_threshold, scale, window, mask = settings
    matrix = dictionary.decoder_matrix()
    assert matrix is not None
    assert codes.entries is not None
    matrix = codes.entries.places.kernels.operand(matrix.detach())
    gating = codes.gating.reshape(len(x_hat), -1)
    if mask is not None:  # below every window
        gating = gating.masked_fill(~mask.reshape(-1, 1), -torch.inf)
    return with_threshold_gradient(x_hat, log_threshold, matrix, gating, scale, window)
