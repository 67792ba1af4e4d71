"""Transcoder (per-layer): reads one hook point and writes another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.kinds.per_layer import PerLayerFields
from pipeline.params.sections.activations import HOOK_POINT


@dataclass(frozen=True)
class TranscoderFields(PerLayerFields):
    """Fields: those of PerLayerFields; the two hook points must differ."""

    WRITES_ELSEWHERE: ClassVar[bool] = True

    hook_point_in: str = param("blocks.2.ln2.hook_out", form=HOOK_POINT, also_called=("hook_point", "hook_name"))
    hook_point_out: str | None = param("blocks.2.hook_mlp_out", form=HOOK_POINT)
