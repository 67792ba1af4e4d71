"""The fields of the SAE and the per-layer transcoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.kinds.one_hook_point import OneHookPointFields
from pipeline.params.section import rule


@dataclass(frozen=True)
class PerLayerFields(OneHookPointFields):
    """It is a transcoder where the two hook points differ."""

    ONE_DECODER: ClassVar[bool] = True

    use_glu_encoder: bool = param(False, about="true: the pre-activation is gated by sigmoid(x W_G + b_G)")
    apply_b_dec_to_input: bool = param(False, about="true: b_D is subtracted from the input first (not of a transcoder)")
    skip: bool = param(False, about="true: a linear skip term is added to the reconstruction (of a transcoder only)")

    @rule("skip")
    def _skip_needs_a_transcoder(self) -> str | None:
        if self.skip and not self.is_transcoder:
            return "a skip term on an SAE would learn the identity; only a transcoder has one; write false"
        return None

    @rule("apply_b_dec_to_input")
    def _b_dec_is_of_the_input(self) -> str | None:
        if not self.apply_b_dec_to_input:
            return None
        if self.is_transcoder:
            return "a transcoder's decoder bias belongs to the hook point written, not to the one read (SAE only); write false"
        if self.use_decoder_bias:
            return None
        return "there is no decoder bias to subtract (use_decoder_bias is false); write false, or use_decoder_bias: true"
