"""Edits of features: which one, at which positions, and what becomes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pipeline.analysis.texts import feature_index
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
    for times, given in ((0.0, set_to), (1.0, add)):
        for feature, value in (given or {}).items():
            number, positions = value if isinstance(value, tuple) else (value, None)
            found.append(_edit(shapes, n_tokens, feature, times, number, positions))
    return found


def _ablated(ablate: Ablate | None) -> list[tuple[Feature, Positions]]:
    if ablate is None:
        return []
    if isinstance(ablate, Mapping):
        return list(ablate.items())
    if isinstance(ablate, (int, str)) or _is_pair(ablate):
        return [(ablate, None)]  # type: ignore[list-item]
    return [(feature, None) for feature in ablate]  # type: ignore[misc, union-attr]


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
    listed = [positions] if isinstance(positions, int) else positions
    if listed is not None and not isinstance(listed, slice):
        wrong = [position for position in listed if not -n_tokens <= position < n_tokens]
        if wrong:
            raise DataError(f"feature {own!r}: position {wrong[0]} is out of range; the context has {n_tokens} tokens")
        listed = [int(position) for position in listed]
    return Edit(name, tuple(int(part) for part in place), times, float(plus), listed)


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
