"""One parameter: its default, what it accepts, and the conversion of a raw value read from YAML, TOML or JSON.

`param(...)` is `dataclasses.field` with limits; `convert(value, annotation, limits)` gives the typed value or raises
:class:`Refused` with a message that says what was wanted, what was found and, where it is clear, what to write.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from pipeline.errors import nearest

MOST = 2**63 - 1  # of an integer: what tensors and files hold, and more than there is of anything
MOST_FLOAT = (2 - 2**-23) * 2.0**127  # of a number: what float32, in which steps are computed, can hold
NOT_NULL = ("None", "NULL", "nil")  # strings that are refused where null can be written
NUMBER = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?")


class Refused(Exception):
    """A value that a field does not accept; the text is the fault without its place."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a field accepts beyond its type; for a list, the limits of each item."""

    at_least: float | None = None
    more_than: float | None = None
    at_most: float | None = None
    less_than: float | None = None
    choices: Collection[Any] | None = None
    words: tuple[str, ...] = ()  # strings that a number field accepts, as 'auto'
    steps: bool = False  # an int counts steps, a float is a fraction of the run
    share: tuple[str, str] | None = None  # (things, whole): an int counts things, a float is a share of it
    form: tuple[str, str] | None = None  # regular expression of the whole string, and what it means
    also_called: tuple[str, ...] = ()  # names that people try instead, for the hint
    listed: bool = False  # names and their sections may be a list of sections too, each with its `name`


def param(default: Any = dataclasses.MISSING, *, about: str = "", **limits: Any) -> Any:
    """A dataclass field with :class:`Limits`.

    Args:
        default: its value where nothing is stated.
        about: what it is, in one line that need not repeat its type, limits or choices: `python -m pipeline.params.documents`
            writes params.yaml's comments and docs/params.* from it. A field of the same name in a subclass or another kind
            has the same explanation, without stating it.
        limits: see :class:`Limits`.
    """
    return dataclasses.field(default=default, metadata={"limits": Limits(**limits), "about": about})


def limits_of(field: dataclasses.Field[Any]) -> Limits:
    """The limits given to `param`, or none."""
    return field.metadata.get("limits", _NONE)


def about(field: dataclasses.Field[Any]) -> str:
    """The explanation given to `param`, or an empty one."""
    return field.metadata.get("about", "")


_NONE = Limits()


def convert(value: Any, annotation: Any, limits: Limits = _NONE) -> Any:
    """The value of a field with this annotation.

    An int is accepted for a float; a bool is no number; a list becomes a tuple; nothing else is converted.

    Raises:
        Refused: wrong type, out of range, or not one of the choices.
    """
    members, nullable = types_of(annotation)
    if value is None:
        if nullable:
            return None
        raise Refused(f"expected {in_words(members, nullable, limits)}, got null")
    if typing.get_origin(members[0]) is tuple:
        return _convert_list(value, members[0], nullable, limits)
    if typing.get_origin(members[0]) is Mapping:
        return _convert_names(value, nullable, limits)
    if value in limits.words and isinstance(value, str):
        return value
    converted = _convert_scalar(value, members, nullable, limits)
    _check_limits(converted, limits, nullable)
    return converted


def types_of(annotation: Any) -> tuple[tuple[Any, ...], bool]:
    """The types of a union without None, and whether None was one."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        arguments = typing.get_args(annotation)
        return tuple(a for a in arguments if a is not type(None)), type(None) in arguments
    return (annotation,), False


def _convert_list(value: Any, annotation: Any, nullable: bool, limits: Limits) -> tuple[Any, ...]:
    items = typing.get_args(annotation)
    if not isinstance(value, (list, tuple)):
        hint = "; write null" if nullable and value == "None" else ""
        raise Refused(f"expected {in_words((annotation,), nullable, limits)}, got {describe(value)}{hint}")
    if items[-1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise Refused(f"expected {_list_wanted(typing.get_args(annotation), limits)}, got {len(value)} items")
    converted = []
    for position, (item, item_type) in enumerate(zip(value, items, strict=True)):
        try:
            converted.append(convert(item, item_type, limits))
        except Refused as refused:
            raise Refused(f"item {position}: {refused}") from None
    return tuple(converted)


def _convert_names(value: Any, nullable: bool, limits: Limits) -> dict[str, dict[str, Any]]:
    """Names and a mapping each, whose keys are checked where they belong."""
    hint = "; write null" if nullable and (value in ("None", "none") or value == {}) else ""
    if not isinstance(value, Mapping) or not value:
        found = "an empty one" if isinstance(value, Mapping) else describe(value)
        raise Refused(f"expected a mapping of names{' or null' if nullable else ''}, got {found}{hint}")
    form, meaning = limits.form or (".+", "a name")
    for name, keys in value.items():
        if not isinstance(name, str) or not re.fullmatch(form, name):
            raise Refused(f"expected {meaning} as a name, got '{name}'")
        if not isinstance(keys, Mapping):
            raise Refused(f"{name}: expected a mapping of keys to values, got {describe(keys)}")
    return {name: dict(keys) for name, keys in value.items()}


def _convert_scalar(value: Any, members: tuple[Any, ...], nullable: bool, limits: Limits) -> Any:
    wanted = set(members) - ({str} if limits.words else set())
    if isinstance(value, bool):
        accepted = bool in wanted
    elif isinstance(value, int):
        accepted = int in wanted or float in wanted
        if accepted and abs(value) > (MOST if int in wanted else MOST_FLOAT):
            limit = "lie between -2^63 and 2^63" if int in wanted else "be finite in float32"
            raise Refused(f"must {limit}, got {describe(value)}")
        if accepted and int not in wanted:
            value = float(value)
    elif isinstance(value, (float, str)):
        accepted = type(value) in wanted
    elif isinstance(value, Mapping):
        accepted = dict in wanted
    else:
        accepted = False
    if accepted and nullable and value in NOT_NULL:
        raise Refused(f"expected {in_words(members, nullable, limits)}, got {describe(value)}; write null")
    if not accepted:
        hint = "; write null" if nullable and value in ("None", "none") else _hint(value, wanted, limits)
        raise Refused(f"expected {in_words(members, nullable, limits)}, got {describe(value)}{hint}")
    return value


def _check_limits(value: Any, limits: Limits, nullable: bool) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused(f"must be finite, got {value}")
    if isinstance(value, float) and abs(value) > MOST_FLOAT:
        raise Refused(f"must be finite in float32, at most {MOST_FLOAT:g} in size, got {value}")
    if isinstance(value, str) and (strange := re.search("[\0\ud800-\udfff]", value)):
        raise Refused(f"a character that no name has, at {strange.start()} of {describe(value)}")
    if limits.choices is not None and value not in limits.choices:
        raise Refused(_not_a_choice(value, limits.choices, nullable))
    if limits.form is not None and not re.fullmatch(limits.form[0], value):
        raise Refused(f"expected {limits.form[1]}, got '{value}'")
    if limits.steps and isinstance(value, float) and not 0.0 <= value <= 1.0:
        hint = f"; write {int(value)} for a number of steps" if _is_count(value) else ""
        raise Refused(f"a fraction of the run must be between 0.0 and 1.0, got {value}{hint}")
    if limits.steps and value < 0:
        raise Refused(f"a number of steps must be at least 0, got {value}")
    if limits.share is not None:
        _check_share(value, *limits.share)
    bounds = (
        (limits.at_least, "at least", lambda bound: value >= bound),
        (limits.more_than, "greater than", lambda bound: value > bound),
        (limits.at_most, "at most", lambda bound: value <= bound),
        (limits.less_than, "less than", lambda bound: value < bound),
    )
    wanted = [(text, bound, holds(bound)) for bound, text, holds in bounds if bound is not None]
    if not all(holds for _, _, holds in wanted):
        raise Refused(f"must be {' and '.join(f'{text} {bound}' for text, bound, _ in wanted)}, got {value}")


def _is_count(value: float) -> bool:
    """Whether a number written as a float could be meant as an integer."""
    return value.is_integer() and 0 < value <= MOST


def _check_share(value: float, things: str, whole: str) -> None:
    if isinstance(value, float) and not 0.0 < value <= 1.0:
        hint = f"; write {int(value)} for a number of {things}" if _is_count(value) else ""
        raise Refused(f"a share of {whole} must be greater than 0.0 and at most 1.0, got {value}{hint}")
    if isinstance(value, int) and value < 1:
        raise Refused(f"a number of {things} must be at least 1, got {value}")


def _not_a_choice(value: Any, choices: Collection[Any], nullable: bool) -> str:
    listed = ", ".join([_plain(c) for c in choices] + (["null"] if nullable else []))
    close = nearest(str(value), [str(c) for c in choices])
    hint = f"; did you mean '{close}'?" if close else ";"
    return f"'{_plain(value)}' is none of the choices{hint} (choices: {listed})"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_written(value: Any) -> str:
    """A plain value as params.yaml writes it: null, true, 4.0."""
    return "null" if value is None else _plain(value)


def describe(value: Any) -> str:
    """A found value in words: `the string '1e-3'`, `true`, `a mapping`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return _plain(value)
    for kind, words in ((str, "the string"), (int, "the integer"), (float, "the number")):
        if isinstance(value, kind):
            if isinstance(value, int) and abs(value) >= 10**80:
                return f"an integer of {int(math.log10(abs(value))) + 1:,} digits"
            shown = repr(value)
            return f"{words} {shown if len(shown) <= 80 else shown[:77] + '...'}"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "a mapping" if isinstance(value, dict) else f"a value of type {type(value).__name__}"


def in_words(members: tuple[Any, ...], nullable: bool, limits: Limits) -> str:
    """The type of a field that is one of `members`, as faults name it."""
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    if limits.steps:
        words = "steps (an integer) or a fraction of the run (a number between 0.0 and 1.0)"
    elif typing.get_origin(members[0]) is tuple:
        words = _list_wanted(typing.get_args(members[0]), limits)
    elif limits.share is not None:
        words = f"{limits.share[0]} (an integer) or a share of {limits.share[1]} (a number above 0.0, at most 1.0)"
    else:
        plain = [m for m in members if not (limits.words and m is str)]
        words = " or ".join([names.get(m, "a mapping") for m in plain] + [f"'{word}'" for word in limits.words])
    return f"{words} or null" if nullable else words


def _list_wanted(items: tuple[Any, ...], limits: Limits) -> str:
    members, _ = types_of(items[0])
    plural = " or ".join({int: "integers", float: "numbers", str: "strings"}[member] for member in members)
    if limits.share is not None:
        plural = f"{limits.share[0]} (integers) or shares of {limits.share[1]} (numbers above 0.0, at most 1.0)"
    return f"a list of {plural}" if items[-1] is Ellipsis else f"a list of {len(items)} {plural}"


def _hint(value: Any, wanted: set[Any], limits: Limits) -> str:
    """What to write instead, where a slip of notation is likely."""
    if isinstance(value, str) and (close := nearest(value, limits.words)):
        return f"; did you mean '{close}'?"
    if isinstance(value, str) and wanted & {int, float} and NUMBER.fullmatch(value):
        return f"; write {value.replace('_', '')}, without quotes or underscores"
    if isinstance(value, str) and bool in wanted and value.lower() in _BOOLEAN_WORDS:
        return f"; write {_BOOLEAN_WORDS[value.lower()]}, without quotes"
    if isinstance(value, int) and not isinstance(value, bool) and bool in wanted and value in (0, 1):
        return f"; write {_plain(bool(value))}"
    if isinstance(value, float) and int in wanted and _is_count(abs(value)):
        return f"; write {int(value)}"
    if isinstance(value, (int, float)) and wanted == {str}:
        return "; put it in quotes"
    return ""


_BOOLEAN_WORDS = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
