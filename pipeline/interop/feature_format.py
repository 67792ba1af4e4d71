"""What a format of features does, which holds what the analysis found of each feature and no weights."""

from __future__ import annotations

import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pipeline.errors import ParamsError, unknown_name

if TYPE_CHECKING:
    from pipeline.params.schema import Params

T = TypeVar("T")
_WORDS = {"true": True, "yes": True, "false": False, "no": False}


@dataclass(frozen=True)
class FeatureInputs:
    """Where the features of one dictionary are, and what is known of it.

    Attributes:
        params: of the run.
        member: of a sweep; "": there is none.
        features: the feature store.
        interpretations: folder that `interpret` writes; it need not be there.
        evaluation: metrics/evaluation.json; it need not be there.
    """

    params: Params
    member: str
    features: Path
    interpretations: Path
    evaluation: Path


class FeatureFormat(ABC):
    """A format of features."""

    name: ClassVar[str]

    @abstractmethod
    def export(self, inputs: FeatureInputs, to: str | None, settings: Sequence[str], *, dry_run: bool) -> list[str]:
        """Write or send the features; what was done, in lines for a terminal.

        Args:
            inputs: what is exported.
            to: a directory, or an address that the format knows; None: data/export/<format>/<dictionary>.
            settings: NAME=VALUE each.
            dry_run: check and count all, write and send nothing.

        Raises:
            ParamsError: a setting is unknown or wrong.
            DataError: the features are missing, damaged, or more than the format can hold; nothing is written or sent.
        """


def settings_of(kind: type[T], given: Sequence[str], where: str) -> T:
    """A dataclass of settings from NAME=VALUE; all fields have defaults, of the types str, int, float, bool or a tuple of str.

    Args:
        kind: the dataclass.
        given: NAME=VALUE each; the values of a tuple have commas between them.
        where: what they are settings of, for messages.

    Raises:
        ParamsError: of each that is unknown, given twice or of another type.
    """
    wanted = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    faults = []
    for each in given:
        name, equals, text = each.partition("=")
        if not equals:
            faults.append(f"--set {each}: wanted NAME=VALUE; {where} knows {', '.join(names)}")
        elif name not in names:
            faults.append(f"--set {each}: {unknown_name(f'setting of {where}', name, names)}")
        elif name in values:
            faults.append(f"--set {name}: given twice")
        else:
            try:
                values[name] = _value(text, wanted[name])
            except ValueError as error:
                faults.append(f"--set {name}: expected {error}, got '{text}'")
    if faults:
        raise ParamsError(faults)
    return kind(**values)


def _value(text: str, kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() not in _WORDS:
            raise ValueError("true or false")
        return _WORDS[text.lower()]
    if kind is str:
        return text
    try:
        return kind(text)
    except ValueError:
        raise ValueError("an integer" if kind is int else "a number") from None
