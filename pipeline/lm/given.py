"""What the public functions want where they take a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.arguments import of_kind
from pipeline.lm.language_model import LanguageModel

A_MODEL = of_kind(LanguageModel, "a language model; `load_language_model(name)` loads one")


def models(value: Any) -> str:
    """A language model, or {alias: model}."""
    each = list(value.values()) if isinstance(value, Mapping) else [value]
    right = bool(each) and all(isinstance(one, LanguageModel) for one in each)
    return "" if right else "a language model, or {alias: model}; `load_language_model(name)` loads one"
