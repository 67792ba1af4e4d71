"""The fields of the kinds that read one hook point and write one: SAE and transcoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.hook_keys import written_before_read
from pipeline.params.fields import param
from pipeline.params.section import rule
from pipeline.params.sections.activations import HOOK_POINT
from pipeline.params.sections.dictionary import DictionaryParams


@dataclass(frozen=True)
class PerLayerParams(DictionaryParams):
    """One hook point is read and one is written. It is a transcoder where the two hook points differ."""

    ONE_DECODER: ClassVar[bool] = True

    hook_point_in: str = param(
        "blocks.2.hook_resid_post",
        form=HOOK_POINT,
        also_called=("hook_point", "hook_name"),
        about="hook point that is read: blocks.L.name",
    )
    hook_point_out: str | None = param(
        None, form=HOOK_POINT, about="hook point that is reconstructed; null: hook_point_in (another one: a transcoder)"
    )
    use_glu_encoder: bool = param(False, about="true: the pre-activation is gated by sigmoid(x W_G + b_G)")
    apply_b_dec_to_input: bool = param(False, about="true: b_D is subtracted from the input first (not of a transcoder)")
    skip: bool = param(False, about="true: a linear skip term is added to the reconstruction (of a transcoder only)")

    @property
    def written_hook_point(self) -> str:
        """hook_point_out, which is hook_point_in when null."""
        return self.hook_point_out or self.hook_point_in

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes another hook point than it reads."""
        return self.written_hook_point != self.hook_point_in

    @property
    def hooks_in(self) -> tuple[str, ...]:
        """The hook points that are read."""
        return (self.hook_point_in,)

    @property
    def hooks_out(self) -> tuple[str, ...]:
        """The hook points that are written."""
        return (self.written_hook_point,)

    @rule("hook_point_out")
    def _written_after_it_is_read(self) -> str | None:
        return written_before_read(self.hooks_in, self.hooks_out)

    @rule("skip")
    def _skip_needs_a_transcoder(self) -> str | None:
        if self.skip and not self.is_transcoder:
            return "a skip term on an SAE would learn the identity; only a transcoder has one"
        return None

    @rule("apply_b_dec_to_input")
    def _b_dec_is_of_the_input(self) -> str | None:
        if not self.apply_b_dec_to_input:
            return None
        if self.is_transcoder:
            return "a transcoder's decoder bias belongs to the hook point written, not to the one read; SAE only"
        return None if self.use_decoder_bias else "there is no decoder bias to subtract (use_decoder_bias is false)"
