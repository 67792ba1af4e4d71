"""Edits of features: which one, at which positions, and what becomes of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pipeline.analysis.texts import feature_index
from pipeline.arguments import is_whole, shown
from pipeline.errors import DataError

Feature: TypeAlias = "int | str | tuple[str, int | str]"
Positions: TypeAlias = "int | Sequence[int] | slice | None"
Ablate: TypeAlias = "Feature | Sequence[Feature] | Mapping[Feature, Positions]"
Values: TypeAlias = "Mapping[Feature, float | tuple[float, Positions]]"


@dataclass(frozen=True)
class Edit:
    """f becomes times f + plus, at some positions of one feature.

    Attributes:
        dictionary: its name.
        place: of the feature in `feature_shape`.
        times, plus: of the activation, in the dictionary's units.
        positions: None: every token, special ones too.
    """

    dictionary: str
    place: tuple[int, ...]
    times: float
    plus: float
    positions: Positions = None


def edits_of(
    shapes: Mapping[str, Sequence[int]],
    n_tokens: int,
    ablate: Ablate | None = None,
    add: Values | None = None,
    set_to: Values | None = None,
) -> list[Edit]:
    """All edits of a run, ablations first, then what is set, then what is added.

    Args:
        shapes: {dictionary: its feature_shape}.
        n_tokens: T of the contexts.
        ablate: a feature, features, or {feature: positions}: set to 0.
        add, set_to: {feature: value} or {feature: (value, positions)}.

    Raises:
        DataError: no such feature, dictionary or position, or a value that is no finite number.
    """
    found: list[Edit] = []
    for feature, positions in _ablated(ablate):
        found.append(_edit(shapes, n_tokens, feature, 0.0, 0.0, positions))
    for word, times, given in (("set_to", 0.0, set_to), ("add", 1.0, add)):
        if given is not None and not isinstance(given, Mapping):
            raise DataError(f"{word}: wanted {{feature: value}} or {{feature: (value, positions)}}, got {shown(given)}")
        for feature, value in (given or {}).items():
            number, positions = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
            found.append(_edit(shapes, n_tokens, feature, times, number, positions))
    return found


def _ablated(ablate: Ablate | None) -> list[tuple[Feature, Positions]]:
    if ablate is None:
        return []
    if isinstance(ablate, Mapping):
        return list(ablate.items())
    if isinstance(ablate, (int, str)) or _is_pair(ablate):
        return [(ablate, None)]  # type: ignore[list-item]
    if not isinstance(ablate, Iterable):
        raise DataError(
            f"ablate: wanted a feature such as 513 or '2/513', several, or {{feature: positions}}, got {shown(ablate)}"
        )
    return [(feature, None) for feature in ablate]  # type: ignore[misc]


def _is_pair(value: object) -> bool:
    """(dictionary, feature): the first is a name, which no feature is."""
    if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[0], str):
        return False
    return not value[0].replace("/", "").isdecimal()


def _edit(
    shapes: Mapping[str, Sequence[int]], n_tokens: int, feature: Feature, times: float, plus: float, positions: Positions
) -> Edit:
    name, own = feature if isinstance(feature, tuple) else (None, feature)
    if name is None and len(shapes) != 1:
        raise DataError(f"feature {own!r}: the run has the dictionaries {', '.join(shapes)}; write (dictionary, feature)")
    name = next(iter(shapes)) if name is None else name
    if name not in shapes:
        raise DataError(f"feature {own!r}: the run has no dictionary '{name}', it has {', '.join(shapes)}")
    if isinstance(plus, bool) or not isinstance(plus, (int, float)) or not math.isfinite(plus):
        raise DataError(f"feature {own!r}: wanted a finite number or (number, positions), got {plus!r}")
    shape = tuple(shapes[name])
    place = torch.unravel_index(torch.tensor(feature_index(own, shape)), shape)
    return Edit(name, tuple(int(part) for part in place), times, float(plus), _positions(own, n_tokens, positions))


def _positions(feature: object, n_tokens: int, given: Positions) -> list[int] | slice | None:
    """Positions of a context, as whole numbers.

    Raises:
        DataError: one is none, or beyond the context.
    """
    if given is None or isinstance(given, slice):
        return given
    listed = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    for position in listed:
        if not is_whole(position):
            raise DataError(
                f"feature {feature!r}: wanted positions as whole numbers, such as 4 or [4, 5], got {shown(position)}"
            )
        if not -n_tokens <= operator.index(position) < n_tokens:
            raise DataError(
                f"feature {feature!r}: position {position} is out of range; the context has {n_tokens} tokens, positions 0 to "
                f"{n_tokens - 1}, or -1 for the last one"
            )
    return [operator.index(position) for position in listed]


def edited(f: Tensor, edits: Sequence[Edit], layer: int | None = None) -> Tensor:
    """A copy of f [b, T, F] with the edits of these features; differentiable in f.

    Args:
        f: features, of one layer of a dictionary with layers.
        edits: of one dictionary.
        layer: whose features f are; None: there are no layers.
    """
    changed = f.clone()
    for edit in edits:
        if layer is not None and edit.place[0] != layer:
            continue
        where = slice(None) if edit.positions is None else edit.positions
        changed[:, where, edit.place[-1]] = edit.times * changed[:, where, edit.place[-1]] + edit.plus
    return changed
