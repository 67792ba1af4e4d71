"""A parameter file as DVC's writer leaves it, with the comments at the ends of its lines, written from the declaration.

`dvc exp run -S` writes the whole file anew (ruamel.yaml, round trip): it leaves lines as they are but for null, which it writes
as nothing, and lists, which it writes below their key. So both are written in this way here too, and -S of a key changes what
stands at that key alone. Nothing else is touched.
"""

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
    """The text of a YAML parameter file with the comment of each key at the end of its line, nothing for null,
    and lists of scalars below their key.

    Raises:
        ParamsError: a key spreads over lines in such a way that its values would change.
    """
    lines, written, ends = text.split("\n"), comments(), _code_ends(text)
    for key, place, value in _lines_of_keys(yaml.compose(text, Loader=Yaml12Loader)):
        line = place.line
        code, behind = lines[line][: ends[line]], lines[line][ends[line] :]
        below = _items(value, text) if value.start_mark.line == line else []
        if below or _is_null(value, line):
            code = code[: value.start_mark.column].rstrip()
        first = f"{code.ljust(COLUMN)} # {written[key]}" if written.get(key) else code + behind
        lines[line] = "\n".join([first, *(f"{' ' * place.column}- {item}" for item in below)])
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


def _is_null(value: yaml.Node, line: int) -> bool:
    return bool(value.tag.endswith(":null")) and value.start_mark.line == line


def _items(value: yaml.Node, text: str) -> list[str]:
    """The scalars of a list in brackets, as they are written; none of another list, nor of one over several lines."""
    one_line = value.start_mark.line == value.end_mark.line
    if not (isinstance(value, yaml.SequenceNode) and value.flow_style and one_line):
        return []
    if not all(isinstance(item, yaml.ScalarNode) for item in value.value):
        return []
    return [text[item.start_mark.index : item.end_mark.index] for item in value.value]


def _lines_of_keys(node: yaml.Node | None, place: str = "") -> Iterator[tuple[str, yaml.Mark, yaml.Node]]:
    """(dotted key, where it begins, its value) of each key that begins a line."""
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        return
    for key, value in node.value:
        dotted = f"{place}.{key.value}" if place else str(key.value)
        yield dotted, key.start_mark, value
        yield from _lines_of_keys(value, dotted)
