"""The pass that measures activation norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.params.fields import param
from pipeline.params.section import Section


@dataclass(frozen=True)
class NormParams(Section):
    """The pass that measures activation norms."""

    NAME: ClassVar[str] = "norm"

    tokens: int | None = param(262_144, at_least=1, about="tokens measured; null: every one in the store")
