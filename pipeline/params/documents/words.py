"""What a key accepts, in words: short ones for a comment, whole ones for a table."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from typing import Any

from pipeline.params.fields import Limits, as_written, in_words, types_of


def whole(annotation: Any, limits: Limits) -> str:
    """`an integer, at least 1, or null`."""
    types, nullable = types_of(annotation)
    is_list = typing.get_origin(types[0]) is tuple
    if limits.choices is not None:
        words = ", ".join(f"`{as_written(choice)}`" for choice in limits.choices)
    elif limits.form is not None and typing.get_origin(types[0]) is not Mapping:
        words = f"{in_words(types, False, limits)}, each {limits.form[1]}" if is_list else limits.form[1]
    else:
        within = bounds(limits)
        words = in_words(types, False, limits) + (f", {'each ' if is_list else ''}{within}" if within else "")
    return f"{words}, or null" if nullable else words


def bounds(limits: Limits) -> str:
    """`at least 1`, `between 0 and 1`, `above 0, at most 2`; empty without any."""
    if (limits.more_than, limits.less_than).count(None) == 0:
        return f"between {limits.more_than} and {limits.less_than}"
    if (limits.at_least, limits.at_most).count(None) == 0:
        return f"{limits.at_least} to {limits.at_most}"
    stated = (
        ("at least", limits.at_least),
        ("above", limits.more_than),
        ("at most", limits.at_most),
        ("below", limits.less_than),
    )
    return ", ".join(f"{word} {bound}" for word, bound in stated if bound is not None)


def short(annotation: Any, limits: Limits, about: str) -> str:
    """What a comment says after the explanation, with the punctuation before it: choices that it does not name, a range."""
    if limits.steps:
        return ": steps (integer) or fraction"
    if limits.share is not None:
        return f": {limits.share[0]} (integer) or share of {limits.share[1]}"
    if limits.choices is not None:
        choices = [as_written(choice) for choice in limits.choices]
        return "" if all(names(about, choice) for choice in choices) else f": {' | '.join(choices)}"
    upper, lower = (limits.at_most, limits.less_than), (limits.at_least, limits.more_than)
    if upper.count(None) == 2 or lower.count(None) == 2:
        return ""
    each = "each " if typing.get_origin(types_of(annotation)[0][0]) is tuple else ""
    return f", {each}{bounds(limits)}"


def names(about: str, choice: str) -> bool:
    """Whether an explanation has a choice as one of its words."""
    return choice in re.split(r"[ |:,()]+", about)
