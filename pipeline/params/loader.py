"""params.yaml -> Params: strict, every fault at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ParamsError
from pipeline.params.reading import read_mapping
from pipeline.params.rules.hook_points import every_model_is_used
from pipeline.params.schema import Params, section_from_dict
from pipeline.params.section import Reading, Section, hints
from pipeline.params.sections.tracking import TrackingParams

__all__ = ["load_params", "params_from_dict", "section_from_dict", "tracking_of"]


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check a whole parameter file (.yaml, .toml or .json).

    The file states every key; a key of a TOML file that may be null and is left out is null, as TOML has no null.

    Raises:
        ParamsError: with every unknown, missing, mistyped, out-of-range and contradictory key, each as
            `<path>: <dotted key>: <what is wrong>`.
    """
    params = params_from_dict(read_mapping(path), source=str(path), null_left_out=Path(path).suffix.lower() == ".toml")
    if (fault := every_model_is_used(params.hook_points, params.models)) is not None:
        raise ParamsError(f"{path}: models: {fault}")
    return params


def tracking_of(path: str | Path) -> TrackingParams:
    """The section `tracking` of a parameter file. Raises as :func:`load_params`."""
    return load_params(path).tracking


def params_from_dict(values: Mapping[str, Any], *, source: str = "params", null_left_out: bool = False) -> Params:
    """Check nested plain values that state every key, as a file would.

    Args:
        values: sections, keys, values.
        source: what each fault starts with.
        null_left_out: a nullable key that is not stated is null.

    Raises:
        ParamsError: every fault.
    """
    reading = Reading(Params, values, "", complete=True, null_left_out=null_left_out)
    faults = reading.faults
    if faults:
        elsewhere = {f"{where}.{key}" if where else key: _places(key) for where, key in reading.unknown_keys()}
        texts = []
        for fault in faults:
            places = [place for place in elsewhere.get(fault.key, ()) if place != fault.key]
            if places and fault.message.startswith("unknown key"):
                fault = dataclasses.replace(fault, message=f"unknown key; did you mean '{places[0]}'?")
            texts.append(f"{source}: {fault}")
        raise ParamsError(texts)
    params: Params = reading.result()
    try:
        params.members  # noqa: B018 (each is checked like a run of its own)
    except ParamsError as error:
        raise ParamsError([f"{source}: {fault}" for fault in error.faults]) from None
    return params


def _places(key: str) -> list[str]:
    """The dotted places where a key of this name exists."""
    found: list[str] = []

    def search(cls: type[Section], prefix: str) -> None:
        for name, hint in hints(cls).items():
            if isinstance(hint, type) and issubclass(hint, Section):
                search(hint.chosen_by({}), f"{prefix}{name}.")
            elif name == key:
                found.append(f"{prefix}{name}")

    search(Params, "")
    return found
