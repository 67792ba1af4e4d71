"""What each kind and gate can be started with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.params.rules.losses import steers_thresholds
from pipeline.params.section import across

if TYPE_CHECKING:
    from pipeline.params.kinds.fields import DictionaryFields
    from pipeline.params.sections.initializer import InitializerParams
    from pipeline.params.sections.trainer import TrainerParams


@across("initializer.d_active_subspace")
def subspace_fits_the_model(dictionary: DictionaryFields, initializer: InitializerParams) -> str | None:
    """No more directions than dimensions."""
    rank, width = initializer.d_active_subspace, dictionary.d_model
    if rank is not None and width is not None and rank > width:
        return f"{rank} directions do not fit in dictionary.d_model {width}; lower it"
    head = dictionary.head_width if initializer.initialize_lorsa_with_mhsa else None
    if rank is not None and head is not None and rank > head:
        return f"{rank} directions of each head do not fit in dictionary.d_qk_head {head}; lower it"
    return None


@across("initializer.cross_layer_decoders")
def cross_layer_blocks_are_there(dictionary: DictionaryFields, initializer: InitializerParams) -> str | None:
    """Only a cross-layer transcoder writes later layers."""
    if initializer.cross_layer_decoders != "drawn" and not dictionary.HAS_LAYERS:
        return f"kind {dictionary.kind} writes no other layers; write drawn"
    return None


@across("initializer.decoder_uniform_bound")
def decoder_is_drawn_by_its_bound(dictionary: DictionaryFields, initializer: InitializerParams) -> str | None:
    """Cross-layer transcoders and low-rank sparse attention have a draw of their own, and activations are no draw."""
    start, value = initializer, initializer.decoder_uniform_bound
    if value == 1.0 or not start.initialize_W_D_with_activations or not dictionary.DRAWN_BY_BOUNDS:
        return _bound_that_is_not_used(dictionary, value)
    return (
        f"{value} has no effect: decoder rows are activations (initialize_W_D_with_activations); write 1.0, or switch that off"
    )


@across("initializer.encoder_uniform_bound")
def encoder_is_drawn_by_its_bound(dictionary: DictionaryFields, initializer: InitializerParams) -> str | None:
    """The same of the encoder, and a transpose is no draw; a transcoder's is one where its widths differ."""
    start, value = initializer, initializer.encoder_uniform_bound
    may_be_drawn = dictionary.is_transcoder and not start.initialize_W_D_with_activations
    transposed = start.init_encoder_with_decoder_transpose and not may_be_drawn
    if value == 1.0 or not transposed or not dictionary.DRAWN_BY_BOUNDS:
        return _bound_that_is_not_used(dictionary, value)
    return f"{value} has no effect: init_encoder_with_decoder_transpose makes the encoder; write 1.0, or switch that off"


@across("initializer.init_encoder_with_decoder_transpose_factor")
def encoder_is_made_of_the_decoder(dictionary: DictionaryFields, initializer: InitializerParams) -> str | None:
    """Their encoder is no transpose, unless decoder rows come from activations, whose inputs the factor scales."""
    start, value = initializer, initializer.init_encoder_with_decoder_transpose_factor
    if value != 1.0 and not start.init_encoder_with_decoder_transpose:
        return f"{value} is the factor of init_encoder_with_decoder_transpose, which is false; write 1.0 or switch that on"
    return None if start.initialize_W_D_with_activations else _bound_that_is_not_used(dictionary, value)


def _bound_that_is_not_used(dictionary: DictionaryFields, value: float) -> str | None:
    if dictionary.DRAWN_BY_BOUNDS or value == 1.0:
        return None
    return f"kind {dictionary.kind} has a draw of its own, which takes no such number; write 1.0, got {value}"


@across("initializer.bias_init_method")
def bias_is_there(dictionary: DictionaryFields, initializer: InitializerParams) -> str | None:
    """Without decoder bias there is none to start."""
    method = initializer.bias_init_method
    if method == "all_zero" or dictionary.use_decoder_bias:
        return None
    return f"{method} sets the decoder bias, and dictionary.use_decoder_bias is false; write all_zero"


@across("initializer.init_log_jumprelu_threshold_value")
def jumprelu_has_a_first_threshold(
    dictionary: DictionaryFields, trainer: TrainerParams, initializer: InitializerParams
) -> str | None:
    """JumpReLU has no default threshold, but a target L0 in mode threshold or a dictionary to start from gives it; other gates
    have none."""
    stated = initializer.init_log_jumprelu_threshold_value
    if not dictionary.gate.has_threshold:
        if stated is not None:
            return f"{stated} is for jumprelu only; dictionary.act_fn is {dictionary.act_fn}; write null"
        return None
    if steers_thresholds(dictionary, trainer):
        if stated is not None:
            return (
                f"{stated} is not used: thresholds start where they give trainer.target_l0 {trainer.target_l0} "
                "on the data (target_l0_mode threshold); write null"
            )
        return None
    if stated is None and initializer.from_dictionary is None:
        return (
            "is required by dictionary.act_fn jumprelu; usual: -2.302585 (log 0.1). With trainer.target_l0 (target_l0_mode "
            "threshold) the data set it: then leave null"
        )
    return None


@across("trainer.decoder_constraint")
def unit_rows_have_no_norm_to_search(trainer: TrainerParams, initializer: InitializerParams) -> str | None:
    """The grid search looks for the decoder norm that unit rows have given up."""
    if trainer.decoder_constraint == "unit_norm" and initializer.grid_search_init_norm:
        return "unit_norm fixes the decoder norm that initializer.grid_search_init_norm searches; switch one of them off"
    return None
