"""What `stages.preset` prints: a preset, its recipe on a model, or settings of another tool, over a parameter file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ParamsError
from pipeline.lm.loading import model_widths
from pipeline.params.lm_saes.overlay import settings_overlay
from pipeline.params.loader import load_params, params_from_dict
from pipeline.params.preset_flags import text_over
from pipeline.params.presets import laid_over, overlay, preset_names, read_preset
from pipeline.params.reading import read_mapping
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
    """The parameters of a file as `dvc exp run -S` would change it, by DVC itself in a copy.

    Args:
        path: of the parameter file.
        overrides: `key=value` in the grammar of DVC's overrides (Hydra's), also `+key=value`, `~key`, `FILE:key=value`.

    Raises:
        ParamsError: faults of them, each beginning with its key; what DVC would not take.
    """
    if not overrides:
        return load_params(path)
    own = [_of_file(said, path) for said in overrides]
    stated = [_nested(said) for said in own if not said.startswith("~")]
    read_mapping(path)  # what is no parameter file is told as everywhere
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    source = " ".join(f"-S {said}" for said in overrides)
    with tempfile.TemporaryDirectory(prefix="scopeline-plan-") as folder:
        copy = Path(shutil.copy(path, Path(folder) / Path(path).name))
        try:
            apply_overrides(copy, own)
        except DvcException as error:
            values: dict[str, Any] = {}
            for each in stated:
                values = overlay(values, each)
            laid_over(values, path, source)  # an unknown key is told with the nearest one
            raise ParamsError(f"{source}: `dvc exp run` would not take it: {_why(error)}") from None
        return params_from_dict(read_mapping(copy), source=f"{source} over {path}")


def _of_file(said: str, path: str) -> str:
    """An override without the name of the file that it is of, which DVC takes before a colon."""
    file, colon, rest = said.partition("=")[0].partition(":")
    if not colon:
        return said
    if Path(file) != Path(path):
        raise ParamsError(
            f"-S {said}: of {file}, and the parameters are those of {path}; wanted key=value, as -S trainer.lr=2e-4"
        )
    return f"{rest}{said.removeprefix(f'{file}:{rest}')}"


def _why(error: BaseException) -> str:
    """What DVC was told, in one line."""
    return " ".join(str(error.__cause__ or error).split())


def _nested(said: str) -> dict[str, Any]:
    """`trainer.lr=2e-4`, in the grammar of `dvc exp run -S`, as nested values."""
    from dvc.utils.hydra import to_hydra_overrides
    from hydra.errors import HydraException

    wanted = "wanted key=value, as -S trainer.lr=2e-4"
    if not said.partition("=")[0] or "=" not in said:
        raise ParamsError(f"-S {said}: {wanted}")
    try:
        (override,) = to_hydra_overrides([said])
    except HydraException as error:
        first, *rest = str(error).splitlines()
        mark = next((line.index("^") for line in rest if line.strip() == "^"), None)
        # The mark stands below the sign that is not read, in a line that begins with what is said after a heading.
        at = "" if mark is None else f" from '{first[mark:] or said[-1:]}' on"
        raise ParamsError(
            f"-S {said}: `dvc exp run -S` does not read it{at}; {wanted}, a text with other signs in quotes: "
            "-S \"dataset.text_field='the text'\""
        ) from None
    if override.is_sweep_override():
        raise ParamsError(f"-S {said}: several values, and this is one run; a list has brackets, as [{said.partition('=')[2]}]")
    value: Any = override.value()
    for part in reversed(override.key_or_group.split(".")):
        value = {part: value}
    return dict(value)
