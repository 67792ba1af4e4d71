"""What the analysis of the features reads and keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.section import Section

MOST = 32_767  # of what contexts.parquet counts in 16 bits


@dataclass(frozen=True)
class AnalysisParams(Section):
    """The feature store and the dashboard."""

    NAME: ClassVar[str] = "analysis"

    split: str = param("train", choices=("train", "eval"), about="contexts that are looked at")
    tokens: int | None = param(500_000, at_least=1, about="so many of them at most, evenly spread; null: all")
    batch_contexts: int = param(32, at_least=1, about="contexts in one forward pass")
    top_contexts: int = param(10, at_least=1, at_most=MOST, about="strongest contexts kept of each feature")
    band_contexts: int = param(
        3, at_least=0, at_most=MOST, about="contexts shown of each quarter of its activations, drawn at random"
    )
    inactive_contexts: int = param(
        8, at_least=0, at_most=MOST, about="contexts in which it is never active, for scoring explanations"
    )
    window_before: int = param(20, at_least=0, at_most=MOST, about="tokens shown before the strongest one")
    window_after: int = param(10, at_least=0, at_most=MOST, about="and after it")
    logit_tokens: int = param(10, at_least=1, about="tokens that it promotes most, and suppresses most")
    neighbours: int = param(8, at_least=0, about="similar and co-active features listed; 0: none")
    coactivation_tokens: int = param(65_536, at_least=1, about="tokens sampled for co-activation")
    single_page_features: int = param(
        2_000, at_least=0, about="features in the page that is one file (the one in MLflow); 0: no such page"
    )
