"""From trained weights to inference weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.choices import FEATURE_UNITS, FOLD_MODES
from pipeline.params.fields import param
from pipeline.params.section import Section


@dataclass(frozen=True)
class FoldParams(Section):
    """From trained weights to inference weights."""

    NAME: ClassVar[str] = "fold"

    mode: str = param(
        "fold",
        choices=FOLD_MODES,
        about="fold: the norm goes into the weights | keep: it is carried along (token-wise, batch-wise)",
    )
    feature_units: str = param(
        "raw",
        choices=FEATURE_UNITS,
        about="raw: unit decoder rows, activations in the model's units | normalized: as trained (so it is with mode keep)",
    )
    calibration_tokens: int = param(
        16384,
        at_least=0,
        about="last tokens of the store, kept from training, that set an inference threshold; 10,000 or more for an L0 "
        "within 1 %",
    )
    convert_topk_to_jumprelu: bool = param(
        False, about="true: TopK becomes a JumpReLU with one threshold (BatchTopK always does)"
    )
