"""A section of the parameters: a frozen dataclass that checks itself, and the reading of one from a bare mapping.

A rule is a method that returns a fault, or None when all is well, and is attached to the key that it concerns:

    @rule("k_aux")
    def _k_aux_is_used(self) -> str | None: ...

A rule across sections is a function of the sections that it is about, by their names:

    @across("trainer.initial_k")
    def k_starts_above_its_end(dictionary: DictionaryFields, trainer: TrainerParams) -> str | None: ...

Rules also run when other keys of the file are wrong, so that every fault is reported at once: a rule that would read a
faulty value is left out.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pipeline.errors import ParamsError, nearest
from pipeline.params.fields import Limits, Refused, as_written, convert, describe, limits_of

Rule = Callable[[Any], str | None]
S = TypeVar("S", bound="Section")


def rule(key: str, *, of_files: bool = False) -> Callable[[Rule], Rule]:
    """Mark a method as a check whose fault belongs to `key`; `of_files`: of what somebody states in a parameter file only."""

    def mark(check: Rule) -> Rule:
        check.rule_key, check.of_files = key, of_files  # type: ignore[attr-defined]
        return check

    return mark


@dataclasses.dataclass(frozen=True)
class Across:
    """A check of sections together, called with what holds them.

    Attributes:
        rule_key: dotted key that the fault belongs to.
        check: the function of the sections.
        sections: their names.
    """

    rule_key: str
    check: Callable[..., str | None]
    sections: tuple[str, ...]

    def __call__(self, holder: Any) -> str | None:
        return self.check(*(getattr(holder, name) for name in self.sections))


def across(key: str) -> Callable[[Callable[..., str | None]], Across]:
    """Mark a function of sections, which its parameters name, as a check whose fault belongs to the dotted `key`."""
    return lambda check: Across(key, check, tuple(inspect.signature(check).parameters))


def without_effect(cls: type[Section], section: Any, names: Sequence[str]) -> str:
    """`a 3, b 4 have no effect; write a: 1, b: 2` of fields that are not at the defaults of `cls`; empty if all are."""
    defaults = {name: cls.__dataclass_fields__[name].default for name in names}
    found = {name: getattr(section, name) for name in names}
    changed = [name for name in names if found[name] != defaults[name]]
    if not changed:
        return ""
    stated = ", ".join(f"{name} {as_written(found[name])}" for name in changed)
    wanted = ", ".join(f"{name}: {as_written(defaults[name])}" for name in changed)
    return f"{stated} {'has' if len(changed) == 1 else 'have'} no effect; write {wanted}"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One wrong parameter: its dotted key and what is wrong with it."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


@dataclasses.dataclass(frozen=True)
class Section:
    """Base of the sections. Constructed in Python it is checked as strictly as a file is.

    Raises:
        ParamsError: every fault, each starting with the dotted key.
    """

    NAME: ClassVar[str] = ""
    RETIRED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # keys of older files that do nothing, and the values they may have

    def __post_init__(self) -> None:
        raw = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        reading = Reading(type(self), raw, self.NAME)
        if reading.faults:
            raise ParamsError([str(fault) for fault in reading.faults])
        for key, value in reading.values.items():
            object.__setattr__(self, key, value)

    @classmethod
    def chosen_by(cls, raw: Mapping[str, Any]) -> type[Section]:
        """The class that reads this mapping; a section whose fields depend on one of them overrides it.

        Raises:
            Refused: no class fits.
        """
        return cls

    @classmethod
    def completed(cls, raw: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Fault]]:
        """What is read in the place of `raw`: other spellings resolved, what follows filled in; and faults found on the way."""
        return raw, []

    @classmethod
    def foreign(cls, key: str, value: Any) -> str | None:
        """What is wrong with a key that is not the section's: None if it is unknown, "" if it may stand there unused."""
        return None

    @classmethod
    def rules(cls) -> list[Rule]:
        """The checks between fields, in the order of definition."""
        members = {name: member for parent in reversed(cls.__mro__) for name, member in vars(parent).items()}
        return [member for member in members.values() if hasattr(member, "rule_key")]

    def to_dict(self) -> dict[str, Any]:
        """Plain values (dicts, lists, numbers, strings) as a file would state them."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


_HINTS: dict[type, dict[str, Any]] = {}


def hints(cls: type) -> dict[str, Any]:
    """The resolved annotations of a section's fields (resolved once: it is slow)."""
    if cls not in _HINTS:
        _HINTS[cls] = {name: hint for name, hint in typing.get_type_hints(cls).items() if not name.isupper()}
    return _HINTS[cls]


def named_sections(annotation: Any) -> type[Section] | None:
    """The section class of a field that maps names to sections (`Mapping[str, S] | None`); None for another field."""
    for member in typing.get_args(annotation):
        if typing.get_origin(member) is Mapping and issubclass(section := typing.get_args(member)[1], Section):
            return section
    return None


def has_names(annotation: Any) -> bool:
    """Whether a field maps names that the user chooses to something."""
    return any(typing.get_origin(member) is Mapping for member in typing.get_args(annotation))


class Reading:
    """A mapping read as a section: `values` that are right, `faults` for the rest, `result()` when there are none."""

    def __init__(
        self, cls: type[Section], raw: Any, where: str, *, complete: bool = False, null_left_out: bool = False
    ) -> None:
        """Read `raw` as `cls`.

        Args:
            cls: the section.
            raw: what a file or a caller gave; a Section is accepted for a nested one.
            where: dotted place of the section, for the faults.
            complete: every key must be stated.
            null_left_out: a nullable key that is not stated is null (TOML has no null).
        """
        self.cls, self.where = cls, where
        self.values: dict[str, Any] = {}
        self.unknown: list[str] = []
        self._own: list[Fault] = []
        self._nested: dict[str, Reading] = {}
        self._named: dict[str, dict[str, Reading]] = {}
        self._complete, self._null_left_out = complete, null_left_out
        if not isinstance(raw, Mapping):
            self._known_class = False
            self._fault("", f"expected a mapping of keys to values, got {describe(raw)}")
            return
        self._known_class = self._choose(raw)
        if self._known_class:
            raw, found = self.cls.completed(raw)
            for fault in found:
                self._fault(fault.key, fault.message)
        self._read(raw, self._known_class)
        self._check()

    def _choose(self, raw: Mapping[str, Any]) -> bool:
        try:
            self.cls = self.cls.chosen_by(raw)
        except Refused as refused:
            self._fault("kind", str(refused))
            return False
        return True

    def _fault(self, key: str, message: str) -> None:
        self._own.append(Fault(".".join(filter(None, (self.where, key))), message))

    def _read(self, raw: Mapping[str, Any], known_class: bool) -> None:
        fields = {field.name: field for field in dataclasses.fields(self.cls)}
        for key in raw:
            if key in fields or not known_class:
                continue
            if key in self.cls.RETIRED:
                if raw[key] not in self.cls.RETIRED[key]:
                    wanted = " or ".join(as_written(value) for value in self.cls.RETIRED[key])
                    self._fault(str(key), f"does nothing (older files state {wanted}); take it out, got {describe(raw[key])}")
                continue
            foreign = self.cls.foreign(str(key), raw[key])
            if foreign is None:
                self.unknown.append(str(key))
                self._fault(str(key), unknown_key(str(key), self.cls))
            elif foreign:
                self._fault(str(key), foreign)
        for name, field in fields.items():
            if name in raw:
                self._convert(name, raw[name], field)
            elif known_class:
                self._default(name, field)

    def _convert(self, name: str, value: Any, field: dataclasses.Field[Any]) -> None:
        annotation = hints(self.cls)[name]
        if isinstance(annotation, type) and issubclass(annotation, Section):
            if isinstance(value, annotation):
                self.values[name] = value
                return
            where = f"{self.where}.{name}" if self.where else name
            reading = Reading(annotation, value, where, complete=self._complete, null_left_out=self._null_left_out)
            self._nested[name] = reading
            self.values[name] = reading.view()
            return
        if (section := named_sections(annotation)) is not None and value is not None:
            self._convert_named(name, value, section, limits_of(field))
            return
        try:
            self.values[name] = convert(value, annotation, limits_of(field))
        except Refused as refused:
            if not any(fault.key.endswith(f".{name}") for fault in self._own):
                self._fault(name, str(refused))

    def _convert_named(self, name: str, value: Any, section: type[Section], limits: Limits) -> None:
        """Names and their sections; the keys of each have defaults of their own."""
        if not isinstance(value, Mapping) or not value:
            found = "an empty one" if isinstance(value, Mapping) else describe(value)
            self._fault(name, f"expected a mapping of names, or null, got {found}")
            return
        if all(isinstance(item, section) for item in value.values()):
            self.values[name] = dict(value)
            return
        form, meaning = limits.form or (".+", "a name")
        where = f"{self.where}.{name}" if self.where else name
        readings: dict[str, Reading] = {}
        for key, item in value.items():
            if not isinstance(key, str) or not re.fullmatch(form, key):
                self._fault(name, f"expected {meaning} as a name, got '{key}'")
                continue
            readings[key] = Reading(section, item, f"{where}.{key}", null_left_out=self._null_left_out)
        self._named[name] = readings
        self.values[name] = {key: reading.view() for key, reading in readings.items()}

    def _default(self, name: str, field: dataclasses.Field[Any]) -> None:
        annotation = hints(self.cls)[name]
        nullable = type(None) in typing.get_args(annotation)
        if self._null_left_out and nullable:
            self.values[name] = None
            return
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = dataclasses.MISSING
        if any(fault.key.endswith(f".{name}") for fault in self._own):
            return
        if self._complete or default is dataclasses.MISSING:
            section = isinstance(annotation, type) and issubclass(annotation, Section)
            self._fault(name, "missing section" if section else "missing key; every key must be stated")
        else:
            self.values[name] = default

    def _check(self) -> None:
        for check in self.cls.rules():
            try:
                message = check(self.view())
            except Unavailable:
                continue
            if message is not None:
                self._fault(check.rule_key, message)  # type: ignore[attr-defined]

    def view(self) -> Any:
        """The section's right values with its properties; reading a faulty one raises :class:`Unavailable`."""
        return View(self.cls, self.values, self._known_class)

    @property
    def faults(self) -> list[Fault]:
        """Every fault, nested sections first."""
        return [fault for reading in self._all_nested() for fault in reading.faults] + self._own

    def _all_nested(self) -> list[Reading]:
        return [*self._nested.values(), *(reading for named in self._named.values() for reading in named.values())]

    def unknown_keys(self) -> Iterable[tuple[str, str]]:
        """(dotted place of the section, key) of each unknown key."""
        for reading in self._all_nested():
            yield from reading.unknown_keys()
        for key in self.unknown:
            yield self.where, key

    def result(self) -> Any:
        """The section.

        Raises:
            ParamsError: there are faults.
        """
        if self.faults:
            raise ParamsError([str(fault) for fault in self.faults])
        nested = {name: reading.result() for name, reading in self._nested.items()}
        named = {name: {key: each.result() for key, each in readings.items()} for name, readings in self._named.items()}
        return self.cls(**{**self.values, **nested, **named})


class Unavailable(Exception):
    """A check asked for a value that is missing or faulty."""


class View:
    """What a check sees of a section that may have faults elsewhere."""

    def __init__(self, cls: type[Section], values: dict[str, Any], known_class: bool) -> None:
        self._cls, self._values, self._known_class = cls, values, known_class

    def __getattr__(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        if name in hints(self._cls) or not self._known_class:  # the fault is the key, or the one that chooses the class
            raise Unavailable(name)
        member = inspect.getattr_static(self._cls, name, None)
        if isinstance(member, property) and member.fget is not None:
            return member.fget(self)
        if inspect.isfunction(member):
            return functools.partial(member, self)
        if member is None:
            raise AttributeError(f"{self._cls.__name__} has no {name}")
        return member


def unknown_key(key: str, cls: type[Section]) -> str:
    """`unknown key; did you mean '<nearest>'?` among the section's keys and the names that people try for them."""
    names: dict[str, str] = {}
    for field in dataclasses.fields(cls):
        for name in limits_of(field).also_called:
            names[name] = field.name
    names.update({field.name: field.name for field in dataclasses.fields(cls)})
    close = nearest(key, names)
    if close:
        return f"unknown key; did you mean '{names[close]}'?"
    return f"unknown key (known: {', '.join(field.name for field in dataclasses.fields(cls))})"


def section_from_dict(cls: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Read a bare mapping strictly as a section; keys that are not given take the dataclass defaults.

    Args:
        cls: the section's class, as `TrainerParams`.
        values: its keys and values.
        where: what the faults start with; default the section's name.

    Raises:
        ParamsError: every unknown, mistyped, out-of-range or contradictory key.
    """
    return Reading(cls, values, where or cls.NAME).result()
