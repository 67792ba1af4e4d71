"""Presets: overlays of params.yaml that are printed as `-S key=value` flags for `dvc exp run`.

A preset states every key in which it may differ from the embedded default, so that what it means does not depend on
what params.yaml says today; LEFT_ALONE are the keys that stay as params.yaml has them (place, names, tracking).
The flags survive the shell's word splitting: no spaces, quotes or wildcards but the brackets of a list.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ParamsError, unknown_name
from pipeline.params.loader import params_from_dict
from pipeline.params.reading import read_mapping
from pipeline.params.schema import Params, flatten
from pipeline.params.section import hints, named_sections

DIRECTORY = Path(__file__).resolve().parents[2] / "presets"

LEFT_ALONE = (
    "seed",
    "determinism",
    "model.device",
    "activations.device",
    "activations.buffer_shuffle.generator_device",
    "dictionary.name",
    "dictionary.sae_name",
    "dictionary.sae_series",
    "dictionary.use_triton_kernel",
    "dictionary.sparsity_threshold_for_triton_spmm_kernel",
    "tracking.*",
    "demo.*",
)

# Keys that hold names with sections of their own: a preset's take the place of all that are there.
NAMED = tuple(key for key, hint in hints(Params).items() if named_sections(hint) is not None)

_SAFE = re.compile(r"[A-Za-z0-9_./@%:+-]+")
_OTHER_TYPE = re.compile(r"null|true|false|inf|nan|[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)(e[-+]?\d[\d_]*)?", re.IGNORECASE)


def preset_names(directory: Path = DIRECTORY) -> list[str]:
    """The presets that there are."""
    return sorted(path.stem for path in directory.glob("*.yaml"))


def _path(name: str, directory: Path) -> Path:
    names = preset_names(directory)
    if name not in names:
        raise ParamsError(unknown_name("preset", name, names))
    return directory / f"{name}.yaml"


def read_preset(name: str, directory: Path = DIRECTORY) -> dict[str, Any]:
    """The nested values of a preset.

    Raises:
        ParamsError: there is no such preset (the message lists all and the nearest), or it is no valid YAML.
    """
    return read_mapping(_path(name, directory))


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
    """`base` with the keys of `over` in place of its own, section by section."""
    merged = dict(base)
    for key, value in over.items():
        under = merged.get(key)
        nested = isinstance(value, Mapping) and isinstance(under, Mapping)
        merged[key] = overlay(under, value) if nested else value  # type: ignore[arg-type]
    return merged


def apply_preset(name: str, params_path: str | Path = "params.yaml", directory: Path = DIRECTORY) -> Params:
    """The checked parameters that a run with this preset has.

    Raises:
        ParamsError: no such preset, or faults of params.yaml with the preset over it.
    """
    preset = read_preset(name, directory)
    values = overlay(read_mapping(params_path), preset) | {key: preset[key] for key in NAMED if key in preset}
    return params_from_dict(values, source=f"preset {name} over {params_path}")


def flags(preset: Mapping[str, Any]) -> list[str]:
    """`["-S", "trainer.lr=0.0001", ...]`, to be joined by spaces.

    Raises:
        ParamsError: a value that cannot be written without quotes.
    """
    words: list[str] = []
    faults: list[str] = []
    named = {key: preset[key] for key in NAMED if preset.get(key) is not None}
    # Names that are there already would stay beside those of the preset.
    for key, value in (*flatten({**preset, **dict.fromkeys(named)}), *named.items()):
        try:
            words += ["-S", f"{key}={_format(value)}"]
        except ValueError as error:
            faults.append(f"{key}: {error}")
    if faults:
        raise ParamsError(faults)
    return words


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
