"""Cross-layer transcoder: reads one hook point of each of several layers and writes another of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.hook_keys import out_of_order, written_before_read
from pipeline.params.fields import param
from pipeline.params.kinds.several_hook_points import SeveralHookPointsFields
from pipeline.params.section import rule


@dataclass(frozen=True)
class CrossLayerTranscoderFields(SeveralHookPointsFields):
    """Fields: those of SeveralHookPointsFields; layer l writes hook_points_out[l] and those after it."""

    HAS_LAYERS: ClassVar[bool] = True
    WRITES_ELSEWHERE: ClassVar[bool] = True
    DRAWN_BY_BOUNDS: ClassVar[bool] = False

    top_k_of: str = param(
        "layer",
        choices=("layer", "token"),
        about="top_k counts the features of: layer (each, or their mean) | token (all its layers; layertopk, batchlayertopk)",
    )

    @property
    def is_transcoder(self) -> bool:
        """It is."""
        return True

    @property
    def k_layers(self) -> int:
        """All layers with top_k_of token."""
        return self.layers if self.top_k_of == "token" else 1

    @rule("top_k_of")
    def _k_of_a_token_is_shared(self) -> str | None:
        if self.top_k_of == "layer" or self.gate.joint_layers or not self.gate.budgeted:
            return None
        return f"{self.act_fn} has a budget for each layer; write layer, or let them compete (layertopk, batchlayertopk)"

    @rule("top_k_of", of_files=True)
    def _k_of_a_token_is_used(self) -> str | None:
        if self.top_k_of == "layer" or self.gate.budgeted:
            return None
        return f"{self.act_fn} has no k; write layer"

    @rule("hook_points_out")
    def _one_written_for_each_read(self) -> str | None:
        if len(self.hooks_out) != len(self.hooks_in):
            return f"{len(self.hooks_out)} hook points for the {len(self.hooks_in)} of hook_points_in; state one for each"
        both = [hook for hook in self.hooks_in if hook in self.hooks_out]
        if both:
            return f"a transcoder does not write what it reads: {', '.join(both)}; write another hook point of that layer"
        twice = sorted({hook for hook in self.hooks_out if self.hooks_out.count(hook) > 1})
        if twice:
            return f"these are there twice: {', '.join(twice)}; write each once"
        if out_of_order(self.hooks_in):
            return None  # that is the fault
        return out_of_order(self.hooks_out) or written_before_read(self.hooks_in, self.hooks_out)

    @rule("hook_points_in")
    def _layers_ascend(self) -> str | None:
        return out_of_order(self.hooks_in)
