"""How the weights start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
class InitializerParams(Section):
    """Fields: see the comments of params.yaml."""

    NAME: ClassVar[str] = "initializer"

    bias_init_method: str = param("all_zero", choices=("all_zero", "geometric_median", "mean"))
    decoder_uniform_bound: float = param(1.0, more_than=0)
    encoder_uniform_bound: float = param(1.0, more_than=0)
    cross_layer_decoders: str = param("drawn", choices=("drawn", "by_sources", "zero"))
    init_encoder_with_decoder_transpose: bool = param(True)
    init_encoder_with_decoder_transpose_factor: float = param(1.0, more_than=0)
    grid_search_init_norm: bool = param(False)
    init_encoder_bias_with_mean_hidden_pre: bool = param(False)
    init_log_jumprelu_threshold_value: float | None = param(None)
    initialize_W_D_with_activations: bool = param(False)
    initialize_W_D_with_active_subspace: bool = param(False)
    d_active_subspace: int | None = param(None, at_least=1)
    initialize_tc_with_mlp: bool = param(False)
    initialize_lorsa_with_mhsa: bool = param(False)
    model_layer: int | None = param(None, at_least=0)
    tokens: int = param(65536, at_least=1)

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
