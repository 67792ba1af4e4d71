"""Arguments of the public functions: a wrong one is refused in a line that says which, what was wanted and what was given.

    @checked(model=A_MODEL, n=whole(1))
    def top_features(model, dictionary, text, n=10): ...

The default of an argument is always right. What depends on several arguments is for the function itself.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from pipeline.errors import DataError, nearest, unknown_name

P = ParamSpec("P")
R = TypeVar("R")
Check = Callable[[Any], str]
"""What is wanted where a value is not that; "" where it is."""
LONGEST = 60  # characters of a text that is shown


def checked(**checks: Check) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that refuses arguments which are missing, unknown, or not what the check of their name wants.

    Raises (when called):
        DataError: naming the function, the argument, what was wanted and what was given.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                meant, form = _meant(signature, kwargs), _form(function, signature)
                raise DataError(f"{function.__name__}: {error}{meant}; {form}") from None
            for name, check in checks.items():
                default = signature.parameters[name].default
                if name in given and given[name] is not default and (wanted := check(given[name])):
                    raise DataError(f"{function.__name__}: {name}: wanted {wanted}, got {shown(given[name])}")
            return function(*args, **kwargs)

        return call

    return decorate


def _meant(signature: inspect.Signature, given: Mapping[str, Any]) -> str:
    """The argument that an unknown one may be meant for."""
    known = [name for name, one in signature.parameters.items() if one.kind is not one.VAR_KEYWORD]
    near = [nearest(name, known) for name in given if name not in known]
    return f", did you mean '{near[0]}'?" if near and near[0] else ""


def _form(function: Callable[..., Any], signature: inspect.Signature) -> str:
    """`write f(a, b, n=...)`: arguments without a default by their names, the others with dots."""
    parts = [
        name if one.default is one.empty else f"{name}=..."
        for name, one in signature.parameters.items()
        if name != "self" and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]
    return f"write {function.__name__}({', '.join(parts)})"


def shown(value: Any) -> str:
    """A value in a message: a number or a short text as it is, of everything else the kind."""
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, str):
        return repr(value) if len(value) <= LONGEST else f"{value[:LONGEST]!r}..."
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"a {kind} of shape {list(shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {kind} of {', '.join(sorted({type(each).__name__ for each in value})) or 'nothing'}"
    return f"a {kind}"


def of_kind(kind: type | tuple[type, ...], wanted: str) -> Check:
    """The value is an instance."""
    return lambda value: "" if isinstance(value, kind) else wanted


def whole(least: int | None = None) -> Check:
    """A whole number of at least `least`; None: any."""
    wanted = "a whole number" if least is None else f"a whole number of at least {least}"
    return lambda value: "" if is_whole(value) and (least is None or operator.index(value) >= least) else wanted


def is_whole(value: Any) -> bool:
    """Whether it is a whole number: an int, or what stands for one, as of numpy and torch."""
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def number(least: float | None = None) -> Check:
    """A finite number of at least `least`; None: any."""
    wanted = "a finite number" if least is None else f"a finite number of at least {least:g}"

    def wrong(value: Any) -> str:
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return "" if right and (least is None or value >= least) else wanted

    return wrong


def names(value: Any) -> str:
    """A list of names, and no single one."""
    listed = isinstance(value, Iterable) and not isinstance(value, str)
    if listed and isinstance(value, (list, tuple, Mapping)):
        listed = all(isinstance(name, str) for name in value)
    return "" if listed else "a list of names"


A_TEXT = of_kind(str, "a text")
FIELDS = of_kind(Mapping, "a mapping of fields, as {'top_k': 16}")
A_PATH = of_kind((str, os.PathLike), "a path")


class ByName(dict[str, R]):
    """A mapping that says which names it has where it is asked for another.

    Args:
        what: the name is of.
        values: {name: value}.
    """

    def __init__(self, what: str, values: Mapping[str, R] | Iterable[tuple[str, R]]) -> None:
        super().__init__(values)
        self._what = what

    def __missing__(self, name: object) -> R:
        raise DataError(unknown_name(self._what, str(name), self))
