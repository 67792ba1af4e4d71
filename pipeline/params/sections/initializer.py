"""How the weights start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.choices import BIAS_STARTS, CROSS_LAYER_DECODERS
from pipeline.params.fields import param
from pipeline.params.section import Section, rule

DECODER_SWITCHES = (
    "initialize_W_D_with_activations",
    "initialize_W_D_with_active_subspace",
    "initialize_tc_with_mlp",
    "initialize_lorsa_with_mhsa",
)
# The one pair that goes together: rows inside the active subspace of each of the model's heads.
OF_EACH_HEAD = {"initialize_W_D_with_active_subspace", "initialize_lorsa_with_mhsa"}


@dataclass(frozen=True)
class DrawParams(Section):
    """How a kind draws its first weights."""

    NAME: ClassVar[str] = "initializer"

    decoder_uniform_bound: float = param(1.0, more_than=0, about="bound of the uniform draw of decoder weights")
    encoder_uniform_bound: float = param(1.0, more_than=0, about="bound of the uniform draw of encoder weights")
    cross_layer_decoders: str = param(
        "drawn",
        choices=CROSS_LAYER_DECODERS,
        about="clt: drawn | by_sources (all blocks / root of sources) | zero (to later layers)",
    )
    init_encoder_with_decoder_transpose: bool = param(True, about="true: the encoder starts as the decoder's transpose")
    init_encoder_with_decoder_transpose_factor: float = param(1.0, more_than=0, about="times this factor")
    init_log_jumprelu_threshold_value: float | None = param(
        None, about="log of the first JumpReLU threshold, usual -2.302585 (log 0.1); required by jumprelu"
    )


@dataclass(frozen=True)
class InitializerParams(DrawParams):
    """How the weights start."""

    from_dictionary: str | None = param(
        None,
        also_called=("pretrained", "from_pretrained", "finetune_from", "checkpoint"),
        about="fine-tuning: directory of a trained or folded dictionary of the same shapes that gives the weights; null: none",
    )
    seed: int | None = param(None, at_least=0, about="of the draw of the weights; null: the run's seed")
    bias_init_method: str = param(
        "all_zero",
        choices=BIAS_STARTS,
        about="decoder bias: all_zero | geometric_median | mean (of the label's activations)",
    )
    grid_search_init_norm: bool = param(
        False, about="true: search the decoder norm with the least reconstruction loss on one batch"
    )
    init_encoder_bias_with_mean_hidden_pre: bool = param(False, about="true: the encoder bias makes the mean pre-activation 0")
    initialize_W_D_with_activations: bool = param(False, about="true: decoder rows start as random centred activations")
    initialize_W_D_with_active_subspace: bool = param(
        False,
        about="true: decoder rows start in the span of the label's top principal directions (with initialize_lorsa_with_mhsa: "
        "of each head's output)",
    )
    d_active_subspace: int | None = param(None, at_least=1, about="number of those directions; null: the effective rank")
    initialize_tc_with_mlp: bool = param(
        False, about="true: decoder rows start as the MLP's responses to encoder rows (transcoder only)"
    )
    initialize_lorsa_with_mhsa: bool = param(False, about="true: lorsa starts with the model's own attention heads")
    model_layer: int | None = param(
        None, at_least=0, about="layer of that MLP or attention; null: the layer of the hook points"
    )
    tokens: int = param(65536, at_least=1, about="rows of the store read for initialisation")

    @rule("initialize_W_D_with_active_subspace")
    def _one_decoder_initialiser(self) -> str | None:
        on = [name for name in DECODER_SWITCHES if getattr(self, name)]
        if len(on) < 2 or set(on) == OF_EACH_HEAD:
            return None
        return f"only one of these may set the decoder: {', '.join(on)} are all true"

    @rule("d_active_subspace")
    def _subspace_is_switched_on(self) -> str | None:
        if self.d_active_subspace is not None and not self.initialize_W_D_with_active_subspace:
            return "is used by initialize_W_D_with_active_subspace only, which is false; write null or switch that on"
        return None

    @rule("model_layer")
    def _layer_is_used(self) -> str | None:
        if self.model_layer is not None and not (self.initialize_tc_with_mlp or self.initialize_lorsa_with_mhsa):
            return (
                "is used by initialize_tc_with_mlp and initialize_lorsa_with_mhsa only, which are false; write null or switch "
                "one of them on"
            )
        return None

    def drawn_by(self, seed: int) -> int:
        """The seed of the draw in a run of this seed."""
        return seed if self.seed is None else self.seed
