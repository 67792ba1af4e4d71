"""Presets: overlays of params.yaml, each a file in presets/ that states what it changes.

`extends: [a, b]` lays a file over others, first named first; what no file states is the declared default, so that a new
key needs no edit here. What a preset means does not depend on what params.yaml says today: LEFT_ALONE are the keys that
stay as params.yaml has them (place, names, tracking).
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ParamsError, unknown_name
from pipeline.params.dictionary_kinds import KINDS
from pipeline.params.fields import Refused, convert
from pipeline.params.loader import params_from_dict
from pipeline.params.reading import read_mapping
from pipeline.params.schema import Params
from pipeline.params.section import Section, has_names, hints
from pipeline.params.sections.dictionary import DictionaryParams, params_class

DIRECTORY = Path(__file__).resolve().parents[2] / "presets"

LEFT_ALONE = (
    "seed",
    "determinism",
    "model.device",
    "activations.device",
    "dictionary.name",
    "dictionary.sae_name",
    "dictionary.sae_series",
    "tracking.*",
    "demo.*",
)


def _named(cls: type[Section], where: str = "") -> Iterator[str]:
    for key, hint in hints(cls).items():
        if has_names(hint):
            yield f"{where}{key}"
        elif isinstance(hint, type) and issubclass(hint, Section):
            yield from _named(hint, f"{where}{key}.")


# Dotted keys that hold names with contents of their own: those laid over take the place of all that are there.
NAMED = tuple(_named(Params))


def preset_names(directory: Path = DIRECTORY) -> list[str]:
    """The presets that there are: the files of `directory`, those in its folders being parts of presets."""
    return sorted(path.stem for path in directory.glob("*.yaml"))


def _path(name: str, directory: Path) -> Path:
    names = preset_names(directory)
    if name not in names:
        raise ParamsError(unknown_name("preset", name, names))
    return directory / f"{name}.yaml"


def header(name: str, directory: Path = DIRECTORY) -> list[str]:
    """The comment at the top of a preset: what it is, and what it costs."""
    lines = []
    for line in _path(name, directory).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return lines


def is_left_alone(key: str) -> bool:
    """Whether presets leave this dotted key as params.yaml has it."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in LEFT_ALONE)


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` in place of its own, section by section; named sections (NAMED) all at once."""
    return _merged(base, over)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        under = merged.get(key)
        nested = isinstance(value, Mapping) and isinstance(under, Mapping) and f"{where}{key}" not in NAMED
        merged[key] = _merged(under, value, f"{where}{key}.") if nested else value  # type: ignore[arg-type]
    return merged


def layers(name: str, directory: Path = DIRECTORY, above: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """What a file states and, before it, what those that it extends state, each file once: {name: nested values}.

    Args:
        name: a path below `directory` without .yaml.
        directory: where the files are.
        above: the files that led here, each extending the next.

    Raises:
        ParamsError: a file extends itself (through others), one that there is not, or no list; or is no valid YAML.
    """
    if name in above:
        circle = " -> ".join((*above[above.index(name) :], name))
        raise ParamsError(f"{directory / above[-1]}.yaml: extends: a circle, {circle}; take '{name}' out of it")
    path = directory / f"{name}.yaml"
    values = read_mapping(path)
    try:
        bases = convert(values.pop("extends", []), tuple[str, ...])
    except Refused as refused:
        raise ParamsError(f"{path}: extends: {refused}") from None
    known = sorted(each.relative_to(directory).with_suffix("").as_posix() for each in directory.rglob("*.yaml"))
    faults = [f"{path}: extends: {unknown_name('preset', base, known)}" for base in bases if base not in known]
    if faults:
        raise ParamsError(faults)
    found: dict[str, dict[str, Any]] = {}
    for base in bases:
        found |= layers(base, directory, (*above, name))
    return found | {name: values}


def read_preset(name: str, directory: Path = DIRECTORY) -> dict[str, Any]:
    """The nested values of a preset: every declared key but those left alone, of all kinds of dictionary.

    Raises:
        ParamsError: there is no such preset (the message lists all and the nearest), or what `layers` refuses.
    """
    said: dict[str, Any] = {}
    for values in layers(_path(name, directory).stem, directory).values():
        said = overlay(said, values)
    return over_defaults(said)


def over_defaults(said: Mapping[str, Any]) -> dict[str, Any]:
    """`said` laid over the declared default of every key but those left alone."""
    return overlay(_without_left_alone(_defaults(Params, said)), said)


def _defaults(cls: type[Section], said: Any) -> dict[str, Any]:
    """The declared defaults of a section, nested; where its fields depend on a key, of the class that `said` chooses."""
    stated = said if isinstance(said, Mapping) else {}
    try:
        cls = cls.chosen_by(stated)
    except Refused:
        cls = cls.chosen_by({})  # what is stated is refused, with its place, when the preset is checked
    values = _at_rest(cls) if issubclass(cls, DictionaryParams) else {}
    for field in dataclasses.fields(cls):
        hint = hints(cls)[field.name]
        if isinstance(hint, type) and issubclass(hint, Section):
            values[field.name] = _defaults(hint, stated.get(field.name))
        elif field.default is not dataclasses.MISSING:
            values[field.name] = _plain(field.default)
    return values


def _at_rest(cls: type[DictionaryParams]) -> dict[str, Any]:
    """The keys of all kinds as a kind that does not have them takes them: the default, or null where that is refused."""
    values: dict[str, Any] = {}
    for kind in KINDS:
        for field in dataclasses.fields(params_class(kind)):
            at_default = cls.foreign(field.name, field.default) == ""
            values.setdefault(field.name, _plain(field.default) if at_default else None)
    return values


def _plain(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default


def _without_left_alone(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if not is_left_alone(f"{where}{key}")}
    nested = {key: _without_left_alone(value, f"{where}{key}.") for key, value in kept.items() if isinstance(value, Mapping)}
    return {key: value for key, value in (kept | nested).items() if value != {}}


def apply_preset(name: str, params_path: str | Path = "params.yaml", directory: Path = DIRECTORY) -> Params:
    """The checked parameters that a run with this preset has.

    Raises:
        ParamsError: no such preset, or faults of params.yaml with the preset over it.
    """
    return laid_over(read_preset(name, directory), params_path, f"preset {name}")


def laid_over(values: Mapping[str, Any], params_path: str | Path, source: str) -> Params:
    """The checked parameters that a run with these values over a parameter file has.

    Raises:
        ParamsError: faults of the file with the values over it, each beginning with `source`.
    """
    return params_from_dict(overlay(read_mapping(params_path), values), source=f"{source} over {params_path}")
