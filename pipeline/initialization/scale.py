"""One factor for all decoder rows: the least-squares one on a batch.

A start whose reconstructions are too long or too short spends its first steps on length alone (on planted data: FVU 0.82
for unit rows untrained, 0.55 for the same rows times this factor).
"""

from __future__ import annotations

import math

import torch

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import NumericsError
from pipeline.initialization.sample import Sample
from pipeline.initialization.thresholds import set_thresholds_
from pipeline.initialization.weights import parts_of

THRESHOLD_ROUNDS = 8


@torch.no_grad()
def scale_by_least_squares_(
    dictionary: Dictionary,
    batch: Sample,
    option: str,
    *,
    tied: bool,
    unit_rows: bool = False,
    target_l0: float | None = None,
) -> float:
    """Scale the rows by the a that minimises sum ||y - b_D - a r||^2, r the features' part of the reconstruction.

    a = sum <y - b_D, r> / sum ||r||^2. With a tied encoder both sides take sqrt(a) (biases b_E too), since activations grow
    with the encoder. With unit rows the encoder takes all of it. An encoder of its own leaves it to the decoder, and then both
    get one mean length (`balance_`). A gate with fixed thresholds opens differently at another
    scale: there it is repeated; thresholds that are set for a target L0 follow the scale instead. Where no
    positive factor reduces the error (an encoder drawn on its own), r gets the length of what it should be instead.

    Args:
        dictionary: with its biases set.
        batch: of the training batch size, for gates that depend on it.
        option: the initializer option that asks, for errors.
        tied: whether the encoder follows the decoder.
        unit_rows: decoder rows keep their length.
        target_l0: L0 that thresholds are set for; None: they stay as they are.

    Returns: the product of the factors.

    Raises:
        NumericsError: no feature is active, or something is not finite.
    """
    parts_of(dictionary, option)
    product = 1.0
    fixed = dictionary.activation.has_threshold and target_l0 is None
    for _ in range(THRESHOLD_ROUNDS if fixed else 1):
        if target_l0 is not None:
            set_thresholds_(dictionary, batch, target_l0)
        factor = _factor(dictionary, batch, option)
        product *= factor
        encoder = factor if unit_rows else factor**0.5 if tied else 1.0
        _scale_(dictionary, encoder, factor / encoder)
        if abs(factor - 1) < 1e-3:
            break
    if not (tied or unit_rows) and (not fixed or dictionary.config.sparsity_include_decoder_norm):
        balance_(dictionary, option)
    if target_l0 is not None:
        set_thresholds_(dictionary, batch, target_l0)
    return product


def _scale_(dictionary: Dictionary, encoder: float, decoder: float) -> None:
    """Multiply the encoder, with its bias, and the decoder of every feature."""
    bias = dictionary.encoder_bias()
    dictionary.scale_encoder_(torch.full_like(bias, encoder))
    bias.mul_(encoder)
    dictionary.scale_decoder_(torch.full_like(bias, decoder))


@torch.no_grad()
def balance_(dictionary: Dictionary, option: str) -> None:
    """Encoder columns and decoder rows of one mean length; one factor for all, so that what is computed stays the same.

    An encoder drawn at unit bound is hundreds of times as long as the rows that fit it. Adam moves every weight by the same
    step: the rows would turn at once and the columns never (MLP transcoder of the embedded default: FVU 0.21, or a run that
    diverges, instead of 0.065).
    """
    columns, rows = 0.0, 0.0
    for part in parts_of(dictionary, option):
        columns += float(torch.linalg.vector_norm(part.W_E, dim=0).mean())
        rows += float(torch.linalg.vector_norm(part.rows(), dim=1).mean())
    factor = math.sqrt(max(columns, 1e-12) / max(rows, 1e-12))
    _scale_(dictionary, 1 / factor, factor)


def _factor(dictionary: Dictionary, batch: Sample, option: str) -> float:
    part = dictionary.decode_linear(dictionary.encode(batch.x, batch.mask)).double()
    bias = dict(dictionary.named_parameters()).get("b_D")
    wanted = batch.y.double() if bias is None else (batch.y - bias).double()
    if batch.mask is not None:
        part, wanted = part[batch.mask], wanted[batch.mask]
    square, inner, length = (float((a * b).sum()) for a, b in ((part, part), (wanted, part), (wanted, wanted)))
    if not (0 < square < math.inf and 0 < length < math.inf):
        raise NumericsError(
            f"initializer.{option}: no scale fits the decoder rows (sum of squares {square:.3g} of the features' part, "
            f"{length:.3g} of what it should be): are features active at the start, and activations finite?"
        )
    return inner / square if inner > 0 else math.sqrt(length / square)
