"""How the reference's settings are declared: each key with what it takes, and what is made of it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.params.fields import Limits


class Required:
    """The default of a key that must be stated."""


@dataclass(frozen=True)
class Key:
    """One key of a settings class.

    Attributes:
        name: as a settings file states it.
        annotation: its type; a Config, Several or Named for settings inside it.
        default: its value there where it is not stated; Required: it must be.
        to: our dotted key that it becomes; "" where it becomes none by itself.
        why: of a key that becomes none the reason, and the nearest way; of one that is read with others what becomes of it.
        made: the value of `to` from the value here; it may refuse one that ours has not (NoCounterpart).
        only_stated: where it is not stated the default of ours stays, not that of the reference: it changes no number.
        limits: what is accepted beyond the type.
        read: what is made of it takes other keys too (translation.py), so that it is not named as without counterpart.
    """

    name: str
    annotation: Any
    default: Any = Required
    to: str = ""
    why: str = ""
    made: Callable[[Any], Any] | None = None
    only_stated: bool = False
    limits: Limits = field(default_factory=Limits)
    read: bool = False

    @property
    def nested(self) -> Config | None:
        """The settings inside it, if that is what it holds."""
        if isinstance(self.annotation, Several | Named):
            return self.annotation.config
        return self.annotation if isinstance(self.annotation, Config) else None


@dataclass(frozen=True)
class Config:
    """One settings class.

    Attributes:
        name: as the reference calls it.
        keys: its keys, in its order.
    """

    name: str
    keys: tuple[Key, ...]

    @property
    def by_name(self) -> Mapping[str, Key]:
        """{name: key}."""
        return {key.name: key for key in self.keys}

    @property
    def required(self) -> tuple[str, ...]:
        """The names that must be stated."""
        return tuple(key.name for key in self.keys if key.default is Required)


@dataclass(frozen=True)
class Several:
    """A list of settings of one class."""

    config: Config


@dataclass(frozen=True)
class Named:
    """Settings of one class by names that the user chooses."""

    config: Config


class NoCounterpart(Exception):
    """A value of a key that has a counterpart, which that does not take; the text says why, and the nearest way."""


def to(name: str, annotation: Any, default: Any, ours: str, made: Callable[[Any], Any] | None = None, **more: Any) -> Key:
    """A key that becomes one of ours; of the arguments beyond, some are of the key and the others its limits."""
    own = {key: more.pop(key) for key in ("only_stated", "why") if key in more}
    return Key(name, annotation, default, ours, made=made, limits=Limits(**more), **own)


def without(name: str, annotation: Any, default: Any, why: str, **limits: Any) -> Key:
    """A key that has no counterpart."""
    return Key(name, annotation, default, why=why, limits=Limits(**limits))


def together(name: str, annotation: Any, default: Any, how: str, **limits: Any) -> Key:
    """A key of which something is made together with others."""
    return Key(name, annotation, default, why=how, limits=Limits(**limits), read=True)
