"""From trained weights to inference weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.section import Section


@dataclass(frozen=True)
class FoldParams(Section):
    """Fields: see the comments of params.yaml."""

    NAME: ClassVar[str] = "fold"

    mode: str = param("fold", choices=("fold", "keep"))
    feature_units: str = param("raw", choices=("raw", "normalized"))
    calibration_tokens: int = param(16384, at_least=0)
    convert_topk_to_jumprelu: bool = param(False)
