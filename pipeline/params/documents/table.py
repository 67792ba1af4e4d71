"""docs/params.md: every parameter by section, written from the declaration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from pipeline.params.documents.declared import Declared, Form, Key, sections
from pipeline.params.documents.words import whole
from pipeline.params.fields import as_written

_HEAD = """\
# Parameters

Written by `python -m pipeline.params.documents` from pipeline/params; do not edit. A parameter file states every key of its
kind of dictionary. The default is what a preset has that does not state the key; params.yaml states the values of the
embedded default. The rules between keys are in pipeline/params, beside the keys, and are checked when a file is read.
"""


def table() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(part for place, section in sections() for part in _section(place, section))])


def _section(place: str, section: Declared) -> list[str]:
    columns = ["key", "takes", "default", "what it is"]
    if section.chooser:
        columns.insert(1, section.chooser)
    rows = [_row(key, section) for key in section.keys]
    return [
        f"## {place or 'Outside the sections'}",
        *([f"{section.about[:1].upper()}{section.about[1:]}.", ""] if place else [""]),
        _line(columns),
        _line(["---"] * len(columns)),
        *(_line(row) for row in rows),
        "",
    ]


def _row(key: Key, section: Declared) -> list[str]:
    cells = [f"`{key.name}`", _by_choice(key, lambda form: whole(form.annotation, form.limits)), _by_choice(key, _default)]
    if section.chooser:
        cells.insert(1, "all" if key.everywhere else ", ".join(map(as_written, key.forms)))
    return [*cells, key.about]


def _by_choice(key: Key, text: Callable[[Form], str]) -> str:
    """The text of the forms; where they differ, of each with the choices that have it."""
    texts: dict[str, list[str]] = {}
    for choice, form in key.forms.items():
        texts.setdefault(text(form), []).append(as_written(choice))
    if len(texts) == 1:
        return next(iter(texts))
    return "; ".join(f"{', '.join(choices)}: {each}" for each, choices in texts.items())


def _default(form: Form) -> str:
    if form.default is dataclasses.MISSING:
        return "must be stated"
    return f"`{_written(form.default)}`"


def _written(default: Any) -> str:
    return f"[{', '.join(map(_written, default))}]" if isinstance(default, tuple) else as_written(default)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
