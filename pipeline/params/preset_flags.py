"""A preset as `-S key=value` flags for `dvc exp run`.

The flags survive the shell's word splitting: no spaces, quotes or wildcards but the brackets of a list.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ParamsError
from pipeline.params.presets import DIRECTORY, NAMED, laid_over, read_preset
from pipeline.params.reading import read_mapping
from pipeline.params.schema import flatten

_SAFE = re.compile(r"[A-Za-z0-9_./@%:+-]+")
_OTHER_TYPE = re.compile(r"null|true|false|inf|nan|[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)(e[-+]?\d[\d_]*)?", re.IGNORECASE)


def flags_over(name: str, params_path: str | Path = "params.yaml", directory: Path = DIRECTORY) -> list[str]:
    """The flags that lay a preset over this parameter file as it is now, in the file's order.

    What the file says already is left out, and so are keys of other kinds of dictionary that it does not state: DVC would
    refuse them.

    Raises:
        ParamsError: what `apply_preset` and `flags` refuse.
    """
    return flags_of(read_preset(name, directory), params_path, f"preset {name}")


def flags_of(values: Mapping[str, Any], params_path: str | Path, source: str) -> list[str]:
    """The same of nested values, `source` being what faults begin with."""
    own, file = laid_over(values, params_path, source).to_dict(), read_mapping(params_path)
    return flags(_changed(_stated(values, file, own), file))


def text_over(values: Mapping[str, Any], params_path: str | Path, source: str, as_yaml: bool) -> str:
    """Those flags on a line, or as YAML the whole parameter file that they make.

    Raises:
        ParamsError: what `flags_of` refuses.
    """
    if not as_yaml:
        return " ".join(flags_of(values, params_path, source))
    import yaml

    whole = laid_over(values, params_path, source).to_dict()
    return yaml.safe_dump(whole, sort_keys=False, default_flow_style=None).rstrip()


def _stated(values: Mapping[str, Any], *by: Mapping[str, Any]) -> dict[str, Any]:
    """The values whose keys are in one of `by`, in their order."""
    keys = [key for key in dict.fromkeys(key for each in by for key in each) if key in values]
    return {key: _below(key, values[key], *by) for key in keys}


def _below(key: str, value: Any, *by: Mapping[str, Any]) -> Any:
    if not isinstance(value, Mapping):
        return value
    return _stated(value, *(each[key] for each in by if isinstance(each.get(key), Mapping)))


def _changed(values: Mapping[str, Any], file: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The values that are not the file's; names with sections of their own are one value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        there = file.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping) and f"{where}{key}" not in NAMED:
            if inside := _changed(value, there, f"{where}{key}."):
                found[key] = inside
        elif key not in file or not _same(value, there):
            found[key] = value
    return found


def _same(value: Any, there: Any) -> bool:
    """Whether YAML reads both as the same: true is no 1, and 16 is 16.0."""
    if isinstance(value, list | tuple) and isinstance(there, list | tuple):
        return len(value) == len(there) and all(map(_same, value, there))
    return value == there and isinstance(value, bool) == isinstance(there, bool)


def flags(preset: Mapping[str, Any]) -> list[str]:
    """`["-S", "trainer.lr=0.0001", ...]`, to be joined by spaces.

    Raises:
        ParamsError: a value that cannot be written without quotes.
    """
    words: list[str] = []
    faults: list[str] = []
    named = {key: value for key in NAMED if (value := _at(preset, key)) is not None}
    # Names that are there already would stay beside those of the preset.
    for key, value in (*flatten(_nulled(preset, named)), *named.items()):
        try:
            words += ["-S", f"{key}={_format(value)}"]
        except ValueError as error:
            faults.append(f"{key}: {error}")
    if faults:
        raise ParamsError(faults)
    return words


def _at(values: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key, or None."""
    place: Any = values
    for part in key.split("."):
        place = place.get(part) if isinstance(place, Mapping) else None
    return place


def _nulled(values: Mapping[str, Any], keys: Collection[str], where: str = "") -> dict[str, Any]:
    """The values, those of some dotted keys being null."""
    return {
        key: None
        if f"{where}{key}" in keys
        else _nulled(value, keys, f"{where}{key}.")
        if isinstance(value, Mapping)
        else value
        for key, value in values.items()
    }


def _format(value: Any) -> str:
    """A value in the grammar of DVC's overrides (Hydra's), without quotes."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_format(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_format(item)}' for key, item in value.items())}}}"
    if not isinstance(value, str) or not _SAFE.fullmatch(value) or _OTHER_TYPE.fullmatch(value):
        raise ValueError(f"{value!r} cannot be written as a flag without quotes")
    return value
