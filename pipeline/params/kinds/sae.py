"""Sparse autoencoder: reads and writes one hook point (with another hook_point_out it is a transcoder)."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.params.fields import param
from pipeline.params.kinds.per_layer import PerLayerFields
from pipeline.params.sections.activations import HOOK_POINT


@dataclass(frozen=True)
class SAEFields(PerLayerFields):
    """Fields: those of PerLayerFields."""

    hook_point_in: str = param("blocks.2.hook_resid_post", form=HOOK_POINT, also_called=("hook_point", "hook_name"))
