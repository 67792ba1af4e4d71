"""What the held-out metrics are computed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.section import Section


@dataclass(frozen=True)
class EvaluationParams(Section):
    """Held-out metrics."""

    NAME: ClassVar[str] = "evaluation"

    tokens: int | None = param(None, at_least=1, about="held-out tokens evaluated; null: all")
    batch_contexts: int = param(32, at_least=1, about="contexts in one forward pass")
    pca_rank: int | None = param(
        None,
        at_least=1,
        about="rank of the PCA baseline; null: the dictionary's mean L0, rounded (at most what the norm pass keeps)",
    )
    replacement_contexts: int = param(
        0,
        at_least=0,
        about="held-out contexts on which a clt, or a sweep's transcoders of all layers, take the place of all MLPs; 0: none",
    )
    graph_tokens: int = param(24, at_least=1, about="first tokens of each of these whose attribution graph is made")
