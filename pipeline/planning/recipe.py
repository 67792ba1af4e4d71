"""What `stages.preset` prints: a preset, its recipe on a model, or settings of another tool, over a parameter file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from pipeline.errors import ParamsError
from pipeline.lm.loading import model_widths
from pipeline.params.lm_saes.overlay import settings_overlay
from pipeline.params.loader import load_params
from pipeline.params.preset_flags import text_over
from pipeline.params.presets import laid_over, overlay, preset_names, read_preset
from pipeline.params.reading import Yaml12Loader, read_mapping
from pipeline.params.recipes import Target, note_on, recipe_on
from pipeline.params.schema import Params


def preset_text(
    name: str | None,
    params: str,
    *,
    settings: str | None = None,
    model: str | None = None,
    layer: int | None = None,
    overrides: Sequence[str] = (),
    as_yaml: bool = False,
) -> tuple[str, list[str]]:
    """(flags on a line, or a whole parameter file; notes).

    Args:
        name: of the preset; None with `settings`.
        params: the parameter file.
        settings: file of Language-Model-SAEs in the preset's place.
        model: hub id, local directory, GGUF file or demo that the preset's recipe is used on; None: the preset as it is.
        layer: with `model`, block that the recipe's highest hook point comes to; None: the middle one.
        overrides: `key=value`, laid over it all.
        as_yaml: the file in the place of the flags.

    Raises:
        ParamsError: faults of what is asked for, and of the parameters that it comes to.
        DataError: there is no such model.
    """
    if (name is None) == (settings is None):
        raise ParamsError(f"give a preset or --from-settings FILE, one of them (presets: {', '.join(preset_names())})")
    if model is None and layer is not None:
        raise ParamsError("--layer is of --on: preset NAME --on MODEL --layer 6")
    notes: list[str] = []
    if name is None:
        if model is not None:
            raise ParamsError("--on is of a preset, which --from-settings is not: preset NAME --on MODEL")
        source = str(settings)
        values, notes = settings_overlay(source, params)
    elif model is None:
        values, source = read_preset(name), f"preset {name}"
    else:
        widths = model_widths(model)
        values = recipe_on(name, Target(model, widths.n_layers, widths.d_model, layer), read_mapping(params))
        notes, source = note_on(values), f"preset {name} on {model}"
    for said in overrides:
        values = overlay(values, _nested(said))
    return text_over(values, params, source, as_yaml), [f"note: {note}" for note in notes]


def params_with(path: str, overrides: Sequence[str]) -> Params:
    """The parameters of a file with `key=value` laid over it.

    Raises:
        ParamsError: faults of them, each beginning with its key.
    """
    if not overrides:
        return load_params(path)
    values: dict[str, Any] = {}
    for said in overrides:
        values = overlay(values, _nested(said))
    return laid_over(values, path, " ".join(f"-S {said}" for said in overrides))


def _nested(said: str) -> dict[str, Any]:
    """`trainer.lr=2e-4` as nested values."""
    key, equals, text = said.partition("=")
    if not key or not equals:
        raise ParamsError(f"-S {said}: wanted key=value, as -S trainer.lr=2e-4")
    try:
        value: Any = yaml.load(text, Loader=Yaml12Loader)
    except yaml.YAMLError:
        raise ParamsError(f"-S {said}: the value is no valid YAML; wanted key=value, as -S trainer.lr=2e-4") from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)
