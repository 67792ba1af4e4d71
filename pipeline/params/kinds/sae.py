"""Sparse autoencoder: reads and writes one hook point (with another hook_point_out it is a transcoder)."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.params.fields import param
from pipeline.params.sections.per_layer import PerLayerParams


@dataclass(frozen=True)
class SAEParams(PerLayerParams):
    """Fields: those of PerLayerParams."""

    kind: str = param("sae", choices=("sae",))
