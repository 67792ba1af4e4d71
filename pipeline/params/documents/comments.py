"""The comments at the ends of the lines of a parameter file, written from the declaration; nothing else is touched."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from pipeline.errors import ParamsError
from pipeline.params.documents.declared import Key, sections
from pipeline.params.documents.words import short
from pipeline.params.fields import as_written
from pipeline.params.reading import Yaml12Loader

COLUMN = 40  # of the space before a comment; a longer line has one space there


def comments() -> dict[str, str]:
    """{dotted key: comment} of every key and section."""
    found = {}
    for place, section in sections():
        if place:
            found[place] = section.about
        for key in section.keys:
            found[f"{place}.{key.name}" if place else key.name] = comment(key)
    return found


def comment(key: Key) -> str:
    """`lorsa: width of a query and of a key`, with the choices and ranges that the explanation does not name."""
    whose = "" if key.everywhere else f"{', '.join(map(as_written, key.forms))}: "
    form = next(iter(key.forms.values()))
    return whose + key.about + short(form.annotation, form.limits, key.about)


def commented(text: str) -> str:
    """The text of a YAML parameter file with the comment of each key at the end of its line.

    Raises:
        ParamsError: a key spreads over lines in such a way that its values would change.
    """
    lines, written, ends = text.split("\n"), comments(), _code_ends(text)
    for key, line in _lines_of_keys(yaml.compose(text, Loader=Yaml12Loader)):
        if written.get(key):
            lines[line] = f"{lines[line][: ends[line]].ljust(COLUMN)} # {written[key]}"
    result = "\n".join(lines)
    if yaml.load(result, Loader=Yaml12Loader) != yaml.load(text, Loader=Yaml12Loader):
        raise ParamsError("comments would change the values; write each key and its value on one line, or a list below it")
    return result


def _code_ends(text: str) -> dict[int, int]:
    """{line: the column after its last character that is no comment}."""
    ends: dict[int, int] = {}
    for token in yaml.scan(text, Loader=Yaml12Loader):
        if token.end_mark.index > token.start_mark.index:
            ends[token.end_mark.line] = max(token.end_mark.column, ends.get(token.end_mark.line, 0))
    return ends


def _lines_of_keys(node: yaml.Node | None, place: str = "") -> Iterator[tuple[str, int]]:
    """(dotted key, line) of each key that begins a line."""
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        return
    for key, value in node.value:
        dotted = f"{place}.{key.value}" if place else str(key.value)
        yield dotted, key.start_mark.line
        yield from _lines_of_keys(value, dotted)
