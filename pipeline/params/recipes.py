"""The recipe of a preset on another model: what makes the method, without the model, text and lengths that it was sized for.

Taken of the preset: the sections of RECIPE but for LENGTHS. Everything else stays as the parameter file has it. The preset's
highest hook point comes to the middle block of the model (or to a named one), its others keep their distance; a cross-layer
transcoder is of all blocks. Bounds of drawn weights go with the width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pipeline.errors import ParamsError
from pipeline.params.dictionary_kinds import kind_fields
from pipeline.params.presets import overlay, read_preset
from pipeline.params.sections.model import ModelParams

RECIPE = ("dictionary", "initializer", "trainer", "fold", "sweep")
LENGTHS = ("total_training_tokens", "amp_dtype", "log_frequency", "n_checkpoints", "checkpoint_minutes")  # of a run, no method
# Of another model they are not what they were of the one before.
_OF_THE_MODEL = ("revision", "tokenizer_name", "prepend_bos")
_BOUNDS = ("decoder_uniform_bound", "encoder_uniform_bound")
SMALL_WIDTH = 128  # of the embedded model, which presets without d_model are sized for
_BLOCK = re.compile(r"blocks\.(\d+)\.")


class Target(NamedTuple):
    """The model that a recipe is used on.

    Attributes:
        name: as model.model_name states it.
        n_layers, d_model: of it.
        layer: block that the recipe's highest hook point comes to; None: the middle one.
    """

    name: str
    n_layers: int
    d_model: int
    layer: int | None = None


def recipe_on(recipe: str, target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
    """The nested values that a preset's recipe comes to on a model, to be laid over `params`.

    Args:
        recipe: name of a preset.
        target: the model.
        params: nested values of the parameter file.

    Raises:
        ParamsError: no such preset, one that is about a model of its own, or a block that the model does not have.
    """
    preset = read_preset(recipe)
    kind = preset["dictionary"]["kind"]
    if kind_fields(kind).READS_SEQUENCES:
        raise ParamsError(
            f"--on: the heads of a {kind} are those of its model, which '{recipe}' states for its own; copy "
            f"presets/{recipe}.yaml and state n_qk_heads, d_qk_head, n_ctx and rotary_dim of yours"
        )
    if preset["models"] is not None:
        raise ParamsError(f"--on: '{recipe}' compares models that it names; copy presets/{recipe}.yaml and name yours")
    if target.layer is not None and not 0 <= target.layer < target.n_layers:
        raise ParamsError(f"--layer {target.layer}: {target.name} has blocks 0 to {target.n_layers - 1}")
    values = {section: preset[section] for section in RECIPE}
    values["trainer"] = {key: value for key, value in preset["trainer"].items() if key not in LENGTHS}
    values["dictionary"] = {**preset["dictionary"], "d_model": None}
    for key in ("hook_points_in", "hook_points_out"):
        if kind == "clt" and (hooks := values["dictionary"][key]):
            values["dictionary"][key] = [_BLOCK.sub(f"blocks.{i}.", hooks[0], count=1) for i in range(target.n_layers)]
    if kind != "clt":
        values = _mapped(values, _moved(values, target))
    values["initializer"] = _scaled(values["initializer"], preset, target)
    return overlay(values, {"model": _model(target.name, params)})


def _moved(values: Mapping[str, Any], target: Target) -> Callable[[str], str]:
    """What a text comes to: in the name of a hook point the block, moved as the highest one."""
    blocks = [int(block) for text in _texts(values) for block in _BLOCK.findall(text)]
    to = target.n_layers // 2 if target.layer is None else target.layer
    distance = to - max(blocks, default=to)
    if min(blocks, default=0) + distance < 0:
        raise ParamsError(f"--on: the recipe reads blocks {min(blocks)} to {max(blocks)}; {max(blocks)} at {to} is too low")
    return lambda text: _BLOCK.sub(lambda match: f"blocks.{int(match[1]) + distance}.", text)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Nested values with all their texts changed."""
    if isinstance(value, Mapping):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value


def _scaled(initializer: Mapping[str, Any], preset: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """The initialiser with bounds that give rows of the same length at another width; 1 is the default, of any width."""
    width = preset["dictionary"]["d_model"] or SMALL_WIDTH
    scale = (width / target.d_model) ** 0.5
    return {key: round(value * scale, 6) if key in _BOUNDS and value != 1.0 else value for key, value in initializer.items()}


def note_on(values: Mapping[str, Any]) -> list[str]:
    """What has to be said of a recipe on another model."""
    trainer = values["trainer"]
    if trainer["sparsity_loss_type"] is None or trainer["target_l0"] is not None:
        return []
    coefficient = f"trainer.l1_coefficient {trainer['l1_coefficient']:g}"
    return [f"{coefficient} decides L0 and is not tuned for this model; -S trainer.target_l0=N steers to an L0 of N"]


def _model(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """What the section of the model comes to: of another model without what is the present one's own."""
    stated = params.get("model")
    if isinstance(stated, Mapping) and stated.get("model_name") == name:
        return {}
    return {"model_name": name, **{key: getattr(ModelParams(), key) for key in _OF_THE_MODEL}}
