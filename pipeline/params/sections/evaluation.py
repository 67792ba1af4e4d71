"""What the held-out metrics are computed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.section import Section


@dataclass(frozen=True)
class EvaluationParams(Section):
    """Fields: see the comments of params.yaml."""

    NAME: ClassVar[str] = "evaluation"

    tokens: int | None = param(None, at_least=1)
    batch_contexts: int = param(32, at_least=1)
    pca_rank: int | None = param(None, at_least=1)
