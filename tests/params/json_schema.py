"""What a JSON Schema says of a value: the keywords of draft 2020-12 that docs/params.schema.json has, any other one being an error.

The package jsonschema is no dependency of the project.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

SILENT = {"$schema", "$comment", "title", "description", "default", "then"}
TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "integer": lambda value: TYPES["number"](value) and float(value).is_integer(),
}


def complaints(schema: Any, value: Any, place: str = "") -> list[str]:
    """The dotted places that the schema refuses, each with the keyword."""
    if isinstance(schema, bool):
        return [] if schema else [f"{place}: false"]
    found = []
    for keyword, wanted in schema.items():
        if keyword not in SILENT:
            found += KEYWORDS[keyword](wanted, value, place, schema)
    return found


def _same(one: Any, other: Any) -> bool:
    """JSON's equality: 1 is 1.0, but true is no number."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _applies(kind: str, holds: Callable[[Any, Any], bool], keyword: str) -> Callable[..., list[str]]:
    def check(wanted: Any, value: Any, place: str, schema: Any) -> list[str]:
        return [f"{place}: {keyword}"] if TYPES[kind](value) and not holds(value, wanted) else []

    return check


def _type(wanted: Any, value: Any, place: str, schema: Any) -> list[str]:
    names = [wanted] if isinstance(wanted, str) else wanted
    return [] if any(TYPES[name](value) for name in names) else [f"{place}: type"]


def _enum(wanted: Any, value: Any, place: str, schema: Any) -> list[str]:
    return [] if any(_same(value, each) for each in wanted) else [f"{place}: enum"]


def _below(schema: Any, value: Any, place: str) -> Iterator[str]:
    stated, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for key, item in value.items() if isinstance(value, dict) else ():
        yield from complaints(stated.get(key, others), item, f"{place}.{key}" if place else key)


def _condition(wanted: Any, value: Any, place: str, schema: Any) -> list[str]:
    return [] if complaints(wanted, value) else complaints(schema["then"], value, place)


KEYWORDS: dict[str, Callable[..., list[str]]] = {
    "type": _type,
    "enum": _enum,
    "const": lambda wanted, value, place, schema: _enum([wanted], value, place, schema),
    "not": lambda wanted, value, place, schema: [] if complaints(wanted, value) else [f"{place}: not"],
    "anyOf": lambda wanted, value, place, schema: [f"{place}: anyOf"] if all(complaints(s, value) for s in wanted) else [],
    "allOf": lambda wanted, value, place, schema: [text for each in wanted for text in complaints(each, value, place)],
    "if": _condition,
    "properties": lambda wanted, value, place, schema: list(_below(schema, value, place)),
    "additionalProperties": lambda wanted, value, place, schema: (
        [] if "properties" in schema else list(_below(schema, value, place))
    ),
    "propertyNames": lambda wanted, value, place, schema: [
        text for key in value or () for text in complaints(wanted, key, place)
    ],
    "required": lambda wanted, value, place, schema: (
        [f"{place}.{key}: required" for key in wanted if key not in value] if isinstance(value, dict) else []
    ),
    "items": lambda wanted, value, place, schema: (
        [text for item in value for text in complaints(wanted, item, place)] if isinstance(value, list) else []
    ),
    "minProperties": _applies("object", lambda value, least: len(value) >= least, "minProperties"),
    "minItems": _applies("array", lambda value, least: len(value) >= least, "minItems"),
    "maxItems": _applies("array", lambda value, most: len(value) <= most, "maxItems"),
    "minimum": _applies("number", lambda value, bound: value >= bound, "minimum"),
    "exclusiveMinimum": _applies("number", lambda value, bound: value > bound, "exclusiveMinimum"),
    "maximum": _applies("number", lambda value, bound: value <= bound, "maximum"),
    "exclusiveMaximum": _applies("number", lambda value, bound: value < bound, "exclusiveMaximum"),
    # Patterns are ECMAScript's, whose $ is the end and not the last line's.
    "pattern": _applies("string", lambda value, form: re.search(form.removesuffix("$") + r"\Z", value) is not None, "pattern"),
}
