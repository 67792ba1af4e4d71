"""The order of the initialisation's strategies; each is one file of this package.

base draw (the dictionary's own: uniform W_D, W_E its transpose or uniform, zero biases, thresholds)
-> decoder bias -> decoder rows (activations | active subspace | MLP responses | the model's attention heads, with each head's
   own active subspace if asked), with the encoder that goes with them
-> encoder bias -> thresholds for a target L0 -> least-squares scale (activations, subspace, MLP) -> norm by grid search

With unit rows (trainer.decoder_constraint) every decoder row has unit length throughout, and what would be its length is
the encoder's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import build_dictionary
from pipeline.dictionaries.fold import divisible
from pipeline.dictionaries.initial import BaseInitialization
from pipeline.errors import ParamsError
from pipeline.initialization import activation_rows, active_subspace, attention, encoder_bias, grid_search, mlp_responses
from pipeline.initialization.decoder_bias import biases_of, set_decoder_bias_
from pipeline.initialization.sample import Sample
from pipeline.initialization.scale import scale_by_least_squares_
from pipeline.initialization.thresholds import set_thresholds_
from pipeline.initialization.weights import parts_of, transpose_encoder_
from pipeline.lm.attention import AttentionWeights
from pipeline.memory import require_memory
from pipeline.params.sections.initializer import InitializerParams

DECODER_OPTIONS = (activation_rows.OPTION, active_subspace.OPTION, mlp_responses.OPTION, attention.OPTION)

OF_EACH_HEAD = {attention.OPTION, active_subspace.OPTION}  # the one pair that goes together


def build_base(config: Mapping[str, Any], params: InitializerParams, seed: int, *, unit_rows: bool = False) -> Dictionary:
    """A dictionary with its base draw.

    Args:
        config: as for `build_dictionary`.
        params: initializer's parameters.
        seed: of the draw.
        unit_rows: decoder rows of unit length.
    """
    names = {field.name for field in dataclasses.fields(BaseInitialization)} - {"unit_rows"}
    fields = {name: getattr(params, name) for name in names}
    return build_dictionary({**config, **fields, "unit_rows": unit_rows}, seed=seed)


def check(dictionary: Dictionary, params: InitializerParams, *, has_model: bool) -> None:
    """Refuse, by name, options that make no sense for this dictionary; before any data is read.

    Raises:
        ParamsError: all of them at once.
    """
    faults: list[str] = []
    chosen = [option for option in DECODER_OPTIONS if getattr(params, option)]
    if len(chosen) > 1 and set(chosen) != OF_EACH_HEAD:
        faults.append(f"initializer.{chosen[1]}: only one option sets the decoder's rows, {chosen[0]} is on too")
    for option in (*chosen, grid_search.OPTION, encoder_bias.OPTION):
        if getattr(params, option):
            faults += _faults_of(functools.partial(parts_of, dictionary, option))
    if params.bias_init_method != "all_zero":
        faults += _faults_of(functools.partial(biases_of, dictionary, params.bias_init_method))
    if params.initialize_tc_with_mlp:
        faults += _faults_of(functools.partial(mlp_responses.mlp_layers, dictionary, params.model_layer))
        if not has_model:
            faults.append(f"initializer.{mlp_responses.OPTION}: needs the language model; it is an option of the pipeline only")
    if params.initialize_lorsa_with_mhsa:
        faults += _faults_of(functools.partial(attention.attention_layer, dictionary, params.model_layer))
        if not has_model:
            faults.append(f"initializer.{attention.OPTION}: needs the language model; it is an option of the pipeline only")
    if params.init_log_jumprelu_threshold_value is not None and not dictionary.activation.has_threshold:
        act_fn = dictionary.config.act_fn
        faults.append(f"initializer.init_log_jumprelu_threshold_value: act_fn '{act_fn}' has no thresholds; write null")
    d_active = params.d_active_subspace
    if d_active is not None and d_active > dictionary.config.d_out:
        width = dictionary.config.d_out
        faults.append(f"initializer.d_active_subspace: {d_active} directions do not fit in the label's {width} dimensions")
    if faults:
        raise ParamsError(faults)


def _faults_of(check_one: Callable[[], object]) -> list[str]:
    try:
        check_one()
    except ParamsError as error:
        return error.faults
    return []


@torch.no_grad()
def initialize_(
    dictionary: Dictionary,
    sample: Sample,
    params: InitializerParams,
    *,
    batch_rows: int,
    seed: int,
    mlps: Sequence[Callable[[Tensor], Tensor]] = (),
    model_attention: AttentionWeights | None = None,
    unit_rows: bool = False,
    target_l0: float | None = None,
) -> dict[str, float]:
    """Apply the chosen strategies to a dictionary with its base draw, in place.

    Args:
        dictionary: from :func:`build_base`.
        sample: rows of the training data, on the dictionary's device.
        params: initializer's parameters.
        batch_rows: tokens of a training batch, on which scale and grid search are judged.
        seed: of every draw.
        mlps: raw input -> raw output of each imitated layer's MLP, for initialize_tc_with_mlp.
        model_attention: of the imitated layer, for initialize_lorsa_with_mhsa.
        unit_rows: decoder rows keep unit length.
        target_l0: L0 that JumpReLU's thresholds are set for; None: they stay as drawn.

    Returns: what was found on the way: {"least_squares_factor", "d_active_subspace", "grid_search_norm", "grid_search_l_rec",
        "threshold"}, those that apply.

    Raises:
        ParamsError: an option makes no sense for this dictionary, or the features of a batch cannot be held.
        NumericsError: the sample does not allow it (no variance, no active feature).
    """
    check(dictionary, params, has_model=bool(mlps) or model_attention is not None)
    batch = sample.batch(batch_rows, dictionary.reads_sequences)
    if target_l0 is not None or any(getattr(params, option) for option in (*DECODER_OPTIONS, grid_search.OPTION)):
        tokens = batch.x.shape[: 2 if dictionary.reads_sequences else 1].numel()
        require_memory(dictionary.need(tokens, batch_rows), device=batch.x.device)
    set_decoder_bias_(dictionary, sample, params.bias_init_method)
    scaled_by, tied, found = _set_decoder_rows_(dictionary, sample, params, seed, mlps, model_attention)
    if unit_rows:
        _give_lengths_to_encoder_(dictionary)
    wanted = params.init_encoder_bias_with_mean_hidden_pre
    centred = encoder_bias.set_encoder_bias_(dictionary, sample) if wanted else None
    if target_l0 is not None:
        set_thresholds_(dictionary, batch, target_l0)
    if scaled_by is not None:
        found["least_squares_factor"] = scale_by_least_squares_(
            dictionary, batch, scaled_by, tied=tied, unit_rows=unit_rows, target_l0=target_l0
        )

    def redo_encoder() -> None:
        _redo_encoder_(dictionary, params, centred)
        if target_l0 is not None:
            set_thresholds_(dictionary, batch, target_l0)

    if params.grid_search_init_norm:
        norm, loss = grid_search.search_norm_(dictionary, batch, redo_encoder)
        found |= {"grid_search_norm": norm, "grid_search_l_rec": loss}
    if target_l0 is not None:
        found["threshold"] = float(dictionary.log_jumprelu_threshold.max().exp())
    return found


FOUND = {
    "least_squares_factor": "the first weights are scaled by {:.4g}, which reconstructs the sample best",
    "d_active_subspace": "decoder rows lie in the span of the {:.0f} largest principal directions",
    "grid_search_norm": "decoder rows have the length {:.4g}, the best of those that were tried",
    "grid_search_l_rec": "with it the reconstruction loss of the sample is {:.4g}",
    "threshold": "the largest first threshold is {:.4g}",
}


def found_in_words(found: Mapping[str, float]) -> list[str]:
    """What :func:`compose_` has found, a line each."""
    return [FOUND.get(key, f"{key} {{:.6g}}").format(value) for key, value in found.items()]


def _give_lengths_to_encoder_(dictionary: Dictionary) -> None:
    """Unit decoder rows (the MLP's responses have lengths of their own); f grows by what the row loses."""
    rows = dictionary.decoder_rows()
    lengths = divisible(torch.linalg.vector_norm(rows, dim=-1))
    rows.div_(lengths[:, None])
    dictionary.scale_encoder_(lengths)
    dictionary.encoder_bias().mul_(lengths)


def _set_decoder_rows_(
    dictionary: Dictionary,
    sample: Sample,
    params: InitializerParams,
    seed: int,
    mlps: Sequence[Callable[[Tensor], Tensor]],
    model_attention: AttentionWeights | None,
) -> tuple[str | None, bool, dict[str, float]]:
    """The chosen strategy for W_D: the option that wants a least-squares scale, whether the encoder follows, findings."""
    transpose, factor = params.init_encoder_with_decoder_transpose, params.init_encoder_with_decoder_transpose_factor
    if params.initialize_W_D_with_activations:
        tied = activation_rows.set_decoder_rows_(dictionary, sample, transpose=transpose, factor=factor, seed=seed)
        return activation_rows.OPTION, tied, {}
    if model_attention is not None and params.initialize_lorsa_with_mhsa:
        own = attention.Subspace(params.d_active_subspace) if params.initialize_W_D_with_active_subspace else None
        return attention.OPTION, False, attention.set_attention_(dictionary, sample, model_attention, seed, own)
    if params.initialize_W_D_with_active_subspace:
        n, tied = active_subspace.set_decoder_rows_(
            dictionary, sample, d_active=params.d_active_subspace, transpose=transpose, factor=factor
        )
        return active_subspace.OPTION, tied, {"d_active_subspace": n}
    if params.initialize_tc_with_mlp:
        mlp_responses.set_decoder_rows_(dictionary, sample, mlps)
        return mlp_responses.OPTION, False, {}
    return None, transpose and dictionary.drawn_as_transpose, {}


def _redo_encoder_(dictionary: Dictionary, params: InitializerParams, centred: encoder_bias.CentredBias | None) -> None:
    """Encoder and its bias from the decoder as it is, for the grid search.

    An encoder that was never the decoder's transpose stays: of a kind that draws it apart, of a transcoder whose encoder was
    set from inputs or made its decoder.
    """
    own_encoder = params.initialize_W_D_with_activations or params.initialize_tc_with_mlp
    followed = dictionary.drawn_as_transpose and (dictionary.hooks_in == dictionary.hooks_out or not own_encoder)
    if params.init_encoder_with_decoder_transpose and followed:
        for part in parts_of(dictionary, grid_search.OPTION):
            transpose_encoder_(part, params.init_encoder_with_decoder_transpose_factor)
    if centred is not None:
        centred.follow_(dictionary)
