"""The declaration as a JSON Schema (draft 2020-12) of params.yaml: keys, types, limits, choices, defaults, explanations.

It refuses what one key, or the choice of a kind, makes wrong; rules between keys are left to the loader. A number that is
whole counts as an integer there, also 1.0, so that `500.0` steps are refused by the loader only.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any

from pipeline.params.documents.declared import Declared, Form, Key, declared, nested
from pipeline.params.fields import NOT_NULL, Limits, types_of
from pipeline.params.schema import Params
from pipeline.params.section import Section, named_sections

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
_WIDTH = 118


def json_schema() -> dict[str, Any]:
    """The schema of a whole parameter file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": "Written by python -m pipeline.params.documents; do not edit.",
        "title": "Parameters of Scopeline",
        **section_schema(Params),
    }


def section_schema(cls: type[Section], complete: bool = True) -> dict[str, Any]:
    """The schema of a section.

    Args:
        cls: its class.
        complete: every key must be stated, not only those without a default.
    """
    section = declared(cls)
    properties = {key.name: _explained(section, key) for key in section.keys}
    properties |= {name: section_schema(inner, complete) for name, inner in nested(cls)}
    return {
        "description": section.about,
        "type": "object",
        "additionalProperties": False,
        "properties": {name: properties[name] for name in _in_order(cls, properties)},
        "required": _required_always(section, complete),
    } | _chosen(section, complete)


def _in_order(cls: type[Section], properties: dict[str, Any]) -> list[str]:
    own = [field.name for field in dataclasses.fields(cls)]
    return [*own, *(name for name in properties if name not in own)]


def _required(cls: type[Section], complete: bool) -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(cls)
        if complete or (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
    ]


def _required_always(section: Declared, complete: bool) -> list[str]:
    """Whatever is chosen."""
    first, *others = (_required(cls, complete) for cls in section.classes.values())
    return [name for name in first if all(name in other for other in others)]


def _explained(section: Declared, key: Key) -> dict[str, Any]:
    """What holds of a key whatever is chosen, and what editors show of it."""
    explained: dict[str, Any] = {"description": key.about}
    forms = list(key.forms.values())
    if all(form == forms[0] for form in forms[1:]):
        if forms[0].default is not dataclasses.MISSING:
            explained["default"] = _plain(forms[0].default)
        if key.everywhere:
            explained |= _accepted(forms[0])
    return explained


def _chosen(section: Declared, complete: bool) -> dict[str, Any]:
    """For each choice of a section: the keys that it has, and how the others are at rest."""
    if section.chooser is None:
        return {}
    branches = []
    for choice, cls in section.classes.items():
        properties = {key.name: _of_choice(key, choice, cls) for key in section.keys if not _same_everywhere(key)}
        own = [name for name in _required(cls, complete) if name not in _required_always(section, complete)]
        condition = {"properties": {section.chooser: {"const": choice}}, "required": [section.chooser]}
        branches.append({"if": condition, "then": {"properties": properties, "required": own}})
    return {"allOf": branches}


def _same_everywhere(key: Key) -> bool:
    forms = list(key.forms.values())
    return key.everywhere and all(form == forms[0] for form in forms[1:])


def _of_choice(key: Key, choice: Any, cls: type[Section]) -> Any:
    if choice in key.forms:
        return _accepted(key.forms[choice])
    values = [None, *(_plain(form.default) for form in key.forms.values() if form.default is not dataclasses.MISSING)]
    at_rest = [value for value in values if cls.foreign(key.name, value) == ""]
    return {"enum": list(dict.fromkeys(at_rest))} if at_rest else False


def _accepted(form: Form) -> dict[str, Any]:
    """The schema of a key's value."""
    section = named_sections(form.annotation)
    if section is None:
        return _value(form.annotation, form.limits)
    names = {"propertyNames": {"pattern": _pattern(form.limits)}} if form.limits.form else {}
    each = section_schema(section, complete=False)
    named = {"type": ["object", "null"], "minProperties": 1, **names, "additionalProperties": each}
    if not form.limits.listed:
        return named
    name = {"name": {"type": "string", **({"pattern": _pattern(form.limits)} if form.limits.form else {})}}
    item = {**each, "properties": {**name, **each["properties"]}}
    return {"anyOf": [named, {"type": "array", "minItems": 1, "items": item}]}


def _value(annotation: Any, limits: Limits) -> dict[str, Any]:
    types, nullable = types_of(annotation)
    if limits.choices is not None:
        return {"enum": [*limits.choices, *([None] if nullable else [])]}
    if typing.get_origin(types[0]) is Mapping:
        names = {"propertyNames": {"pattern": _pattern(limits)}} if limits.form else {}
        return {"type": ["object", "null"], "minProperties": 1, **names, "additionalProperties": {"type": "object"}}
    if typing.get_origin(types[0]) is tuple:
        items = typing.get_args(types[0])
        length = {} if items[-1] is Ellipsis else {"minItems": len(items), "maxItems": len(items)}
        return {"type": ["array", "null"] if nullable else "array", "items": _value(items[0], limits), **length}
    ways = _ways(set(types), limits)
    if len(ways) > 1:
        return {"anyOf": [*ways, *([{"type": "null"}] if nullable else [])]}
    if nullable and str in types:
        ways[0]["not"] = {"enum": list(NOT_NULL)}
    return {"type": [ways[0].pop("type"), "null"], **ways[0]} if nullable else ways[0]


def _ways(types: set[Any], limits: Limits) -> list[dict[str, Any]]:
    """The schemas of which a single value must satisfy one."""
    if limits.steps:
        return [{"type": "integer", "minimum": 0}, {"type": "number", "minimum": 0, "maximum": 1}]
    if limits.share is not None:
        return [{"type": "integer", "minimum": 1}, {"type": "number", "exclusiveMinimum": 0, "maximum": 1}]
    numeric = types - ({str} if limits.words else set())
    names = ["number"] if {int, float} <= numeric else [_TYPES[each] for each in numeric]
    ways = [{"type": name, **_within(limits)} for name in sorted(names)]
    return [*ways, {"enum": list(limits.words)}] if limits.words else ways


def _within(limits: Limits) -> dict[str, Any]:
    within = {
        "minimum": limits.at_least,
        "exclusiveMinimum": limits.more_than,
        "maximum": limits.at_most,
        "exclusiveMaximum": limits.less_than,
        "pattern": _pattern(limits) if limits.form else None,
    }
    return {name: bound for name, bound in within.items() if bound is not None}


def _pattern(limits: Limits) -> str | None:
    return f"^(?:{limits.form[0]})$" if limits.form else None


def _plain(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default


def as_text(value: Any, indent: int = 0) -> str:
    """JSON with what fits on a line on one line."""
    short = json.dumps(value)
    if len(short) + indent <= _WIDTH or not isinstance(value, (dict, list)):
        return short
    pad, step = " " * indent, " " * (indent + 2)
    if isinstance(value, list):
        inner = [f"{step}{as_text(item, indent + 2)}" for item in value]
        return "[\n" + ",\n".join(inner) + f"\n{pad}]"
    inner = [f"{step}{json.dumps(key)}: {as_text(item, indent + 2)}" for key, item in value.items()]
    return "{\n" + ",\n".join(inner) + f"\n{pad}}}"
