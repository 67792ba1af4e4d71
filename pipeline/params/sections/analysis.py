"""What the analysis of the features reads and keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.section import Section


@dataclass(frozen=True)
class AnalysisParams(Section):
    """Fields: see the comments of params.yaml."""

    NAME: ClassVar[str] = "analysis"

    split: str = param("train", choices=("train", "eval"))
    tokens: int | None = param(500_000, at_least=1)
    batch_contexts: int = param(32, at_least=1)
    top_contexts: int = param(10, at_least=1)
    band_contexts: int = param(3, at_least=0)
    inactive_contexts: int = param(8, at_least=0)
    window_before: int = param(20, at_least=0)
    window_after: int = param(10, at_least=0)
    logit_tokens: int = param(10, at_least=1)
    neighbours: int = param(8, at_least=0)
    coactivation_tokens: int = param(65_536, at_least=1)
    single_page_features: int = param(2_000, at_least=0)
