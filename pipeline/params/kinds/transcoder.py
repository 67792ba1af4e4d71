"""Transcoder (per-layer): reads one hook point and writes another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.section import rule
from pipeline.params.sections.activations import HOOK_POINT
from pipeline.params.sections.per_layer import PerLayerParams


@dataclass(frozen=True)
class TranscoderParams(PerLayerParams):
    """Fields: those of PerLayerParams; the two hook points must differ."""

    WRITES_ELSEWHERE: ClassVar[bool] = True

    kind: str = param("transcoder", choices=("transcoder",))
    hook_point_in: str = param("blocks.2.ln2.hook_out", form=HOOK_POINT)
    hook_point_out: str | None = param("blocks.2.hook_mlp_out", form=HOOK_POINT)

    @rule("hook_point_out")
    def _writes_another_hook_point(self) -> str | None:
        if self.is_transcoder:
            return None
        return f"a transcoder must write another hook point than the one it reads ('{self.hook_point_in}')"
