"""What the public functions want where they take a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.arguments import of_kind
from pipeline.dictionaries.base import Dictionary

A_DICTIONARY = of_kind(Dictionary, "a dictionary; `load_dictionary(path)` reads one")


def dictionaries(value: Any) -> str:
    """A dictionary, a list of them, or {name: dictionary}."""
    wrong = one_or_several(list(value.values()) if isinstance(value, Mapping) else value)
    return wrong and "a dictionary, a list of them, or {name: dictionary}; `load_dictionary(path)` reads one"


def one_or_several(value: Any) -> str:
    """A dictionary, or a list of them."""
    listed = value if isinstance(value, (list, tuple)) else [value]
    right = all(isinstance(one, Dictionary) for one in listed)
    return "" if right else "a dictionary, or a list of them; `load_dictionary(path)` reads one"
