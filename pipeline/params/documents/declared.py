"""The declaration as documents read it: the sections, their keys, and which choice (a kind, a loss) has which of them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.params.fields import Limits, about, limits_of, types_of
from pipeline.params.schema import Params
from pipeline.params.section import Section, hints, named_sections


@dataclass(frozen=True)
class Form:
    """How one class declares a key.

    Attributes:
        annotation: the type.
        limits: what is accepted beyond the type.
        default: the declared default; MISSING if it must be stated.
    """

    annotation: Any
    limits: Limits
    default: Any


@dataclass(frozen=True)
class Key:
    """One key of a section.

    Attributes:
        name: as a file states it.
        about: its explanation.
        forms: {choice: its form} for the choices of the section that have it; {None: form} in a section without choices.
        everywhere: every choice has it.
    """

    name: str
    about: str
    forms: Mapping[Any, Form]
    everywhere: bool


@dataclass(frozen=True)
class Declared:
    """One section.

    Attributes:
        cls: its class.
        about: its explanation.
        chooser: the key that chooses the class that reads the section, as `kind`; None if there is but one.
        classes: {choice: class}, null being a choice where it may be written; {None: cls} if there is but one.
        keys: its own keys, without nested sections.
    """

    cls: type[Section]
    about: str
    chooser: str | None
    classes: Mapping[Any, type[Section]]
    keys: tuple[Key, ...]


def declared(cls: type[Section]) -> Declared:
    """A section as it is declared."""
    chooser, classes = _classes(cls)
    names = dict.fromkeys(field.name for each in (cls, *classes.values()) for field in dataclasses.fields(each))
    keys = tuple(_key(name, cls, chooser, classes) for name in names if not is_section(cls, name))
    return Declared(cls, section_about(cls), chooser, classes, keys)


def nested(cls: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """(name, class) of the sections inside a section, those whose names the user chooses (`models`) left out."""
    for name, hint in hints(cls).items():
        if isinstance(hint, type) and issubclass(hint, Section):
            yield name, hint


def is_section(cls: type[Section], name: str) -> bool:
    """Whether this key of a section is a section."""
    return name in dict(nested(cls))


def sections(cls: type[Section] = Params, place: str = "") -> Iterator[tuple[str, Declared]]:
    """(dotted place, section) of a section and all inside it, outer ones first; a user's name is `NAME`."""
    yield place, declared(cls)
    inside = [
        *nested(cls),
        *((f"{name}.NAME", named) for name, hint in hints(cls).items() if (named := named_sections(hint)) is not None),
    ]
    for name, section in inside:
        yield from sections(section, f"{place}.{name}" if place else name)


def section_about(cls: type[Section]) -> str:
    """The first sentence of a section's docstring, as a comment writes it."""
    first = re.split(r"\.(?:\s|$)", inspect.getdoc(cls) or "", maxsplit=1)[0]
    return first if first[1:2].isupper() else first[:1].lower() + first[1:]


def _classes(cls: type[Section]) -> tuple[str | None, dict[Any, type[Section]]]:
    """The key whose choices have different classes, and these."""
    for field in dataclasses.fields(cls):
        choices = limits_of(field).choices or ()
        nullable = types_of(hints(cls)[field.name])[1]
        classes = {choice: cls.chosen_by({field.name: choice}) for choice in (*choices, *([None] if nullable else []))}
        if len(set(classes.values())) > 1:
            return field.name, classes
    return None, {None: cls}


def _key(name: str, cls: type[Section], chooser: str | None, classes: Mapping[Any, type[Section]]) -> Key:
    forms = {
        choice: Form(hints(each)[name], limits_of(field), field.default)
        for choice, each in classes.items()
        if (field := (cls if name == chooser else each).__dataclass_fields__.get(name)) is not None
    }
    return Key(name, _about(name, (cls, *classes.values())), forms, len(forms) == len(classes))


def _about(name: str, classes: tuple[type[Section], ...]) -> str:
    """The explanation that is stated first among the classes and what they inherit from."""
    for cls in classes:
        for parent in cls.__mro__:
            field = getattr(parent, "__dataclass_fields__", {}).get(name)
            if field is not None and about(field):
                return about(field)
    return ""
