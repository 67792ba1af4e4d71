"""The overlay that settings of the reference are, in the form of a preset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.params.lm_saes.translation import Translation, translate
from pipeline.params.presets import over_defaults
from pipeline.params.reading import read_mapping


def settings_overlay(path: str | Path, params_path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """The nested values that a settings file comes to over a parameter file, and a line for each key to say something of.

    Raises:
        ParamsError: faults of the settings file.
    """
    made = translate(path)
    values = made.nested()
    if made.whole:
        values = _without(over_defaults(values), made)
    else:
        values = _with_a_dictionary(values, made, read_mapping(params_path))
    return values, [f"{path}: {note}" for note in made.notes]


def _without(values: Mapping[str, Any], made: Translation, where: str = "") -> dict[str, Any]:
    """The values without what stays as the parameter file has it, unless the settings say it."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        place = f"{where}{key}"
        is_left = any(place == each or place.startswith(f"{each}.") for each in made.left) and place not in made.values
        if isinstance(value, Mapping) and place not in made.values:
            if inside := _without(value, made, f"{place}."):
                kept[key] = inside
        elif not is_left:
            kept[key] = value
    return kept


def _with_a_dictionary(values: dict[str, Any], made: Translation, params: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a generation, with a dictionary on what it generates, where the parameter file's is on something else."""
    activations, dictionary = values["activations"], params.get("dictionary")
    stated = dictionary if isinstance(dictionary, Mapping) else {}
    used = [*(stated.get("hook_points_in") or []), *(stated.get("hook_points_out") or [])]
    used += [hook for key in ("hook_point_in", "hook_point_out") if (hook := stated.get(key))]
    hooks = activations["hook_points"]
    if not used or any(hook not in hooks for hook in used):
        values["dictionary"] = {"kind": "sae", "hook_point_in": hooks[0], "hook_point_out": None}
        values["dictionary"] |= {"hook_points_in": None, "hook_points_out": None}
        made.say("hook_points", f"the parameter file's dictionary is on none of them: one on {hooks[0]} here", counterpart=True)
    if activations["target"] == "activations-2d":
        contexts = max(1, 2048 // max(1, activations["context_size"]))
        activations["batch_size"] = contexts
        made.say("target", f"activations.batch_size {contexts}: a training batch of contexts", counterpart=True)
    return values
