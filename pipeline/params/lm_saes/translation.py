"""Settings of the reference as an overlay of our parameters, and every key of theirs that has no counterpart, by name.

What settings do not state is the reference's own default, so that the run is the one that they describe; what the reference
has no key for is our declared default, but for OF_THE_REFERENCE. A key that does nothing there beside the others (acting.py) is
left at ours, and lengths that the run is too short for are shortened: both are said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import ParamsError
from pipeline.params.choices import MODEL_DTYPES, NORMS_OF_THE_DATA
from pipeline.params.fields import as_written
from pipeline.params.gates import GATES
from pipeline.params.lm_saes.acting import act_fn, differs, is_transcoder, why_idle
from pipeline.params.lm_saes.conversions import dtype_name, model_dtype
from pipeline.params.lm_saes.declared import NoCounterpart, Required
from pipeline.params.lm_saes.lengths import fit_lengths
from pipeline.params.lm_saes.settings import Settings, read_settings
from pipeline.params.lm_saes.text import lay_text

# What the reference does where we have a key and it has none.
OF_THE_REFERENCE: Mapping[str, Any] = {"activations.max_norm_factor": None}


@dataclass(frozen=True)
class Note:
    """What is said of one key of the settings.

    Attributes:
        key: its dotted place.
        value: what the file states, or the reference's default.
        text: why it has no counterpart, or what else is made of it.
        counterpart: whether it has one, which means something else.
    """

    key: str
    value: str
    text: str
    counterpart: bool = False

    def __str__(self) -> str:
        return (
            f"{self.key}{f' {self.value}' if self.value else ''}: {'' if self.counterpart else 'no counterpart: '}{self.text}"
        )


@dataclass
class Translation:
    """Settings in our terms.

    Attributes:
        settings: what was read.
        values: {dotted key of ours: value}.
        notes: what is said, in the order of the file's classes.
        left: dotted keys and sections of ours that stay as the parameter file has them.
        whole: whether the overlay states every key, as a preset does; a generation's states those that it is about.
    """

    settings: Settings
    values: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    left: tuple[str, ...] = ()
    whole: bool = True

    def say(self, place: str, text: str, *, counterpart: bool = False) -> None:
        """Say something of a key of the settings; one that is not stated is named as a default."""
        settings = self.settings
        if place in settings.stated:
            value = written(settings.stated[place])
        elif place in settings.known and settings.known[place].nested is None and settings.known[place].default is not Required:
            value = f"{written(settings.known[place].default)} (its default)"
        else:
            value = ""
        self.notes.append(Note(place, value, text, counterpart))

    def nested(self) -> dict[str, Any]:
        """The values, section by section."""
        found: dict[str, Any] = {}
        for dotted, value in self.values.items():
            *sections, key = dotted.split(".")
            place = found
            for section in sections:
                place = place.setdefault(section, {})
            place[key] = value
        return found


def translate(path: str | Path) -> Translation:
    """Read a settings file and say it in our terms.

    Raises:
        ParamsError: as `read_settings` does.
    """
    settings = read_settings(path)
    made = Translation(settings)
    for place, key in settings.known.items():
        if key.to:
            _lay(made, place)
        elif not key.read and place in settings.stated:
            made.say(place, key.why)
    hooks = _lay_activations(made)
    if settings.kind:
        _lay_dictionary(made, hooks)
        _lay_training(made)
    lay_text(made)
    if settings.kind:
        fit_lengths(made)
    if "mongo" in settings.sections and not any(place.startswith("mongo.") for place in settings.stated):
        made.say("mongo", settings.known["mongo"].why)
    made.values |= OF_THE_REFERENCE
    made.notes.sort(key=lambda note: list(settings.known).index(note.key) if note.key in settings.known else -1)
    return made


def _lay(made: Translation, place: str) -> None:
    """A key that becomes one of ours."""
    settings, key = made.settings, made.settings.known[place]
    stated, value = place in settings.stated, settings[place]
    section = place.rpartition(".")[0]
    absent = section in ("model", "wandb") and section not in settings.sections
    if absent or value is Required or (key.only_stated and not stated) or _of_a_further_factory(place):
        if stated and _of_a_further_factory(place):
            made.say(place, "the first one's is taken")
        return
    idle = why_idle(settings, place)
    if idle is not None:
        if stated and value not in (None, False):
            made.say(place, f"it does nothing here: {idle}", counterpart=True)
        return
    try:
        made.values[key.to] = key.made(value) if key.made else _plain(value)
    except NoCounterpart as refused:
        made.say(place, str(refused))
        return
    if (difference := differs(settings, place, value)) is not None and (stated or key.name == "lr_scheduler_name"):
        made.say(place, difference, counterpart=True)


def _of_a_further_factory(place: str) -> bool:
    return place.startswith("activation_factories[") and not place.startswith("activation_factories[0]")


def _lay_dictionary(made: Translation, hooks: list[str]) -> None:
    """The kind, its hook points, and what follows from gate and norm."""
    settings, values = made.settings, made.values
    kind = settings.kind
    values["dictionary.kind"] = "transcoder" if is_transcoder(settings) else kind
    written_hook = settings["sae.hook_point_out"] if kind == "sae" else None
    if written_hook is not None and written_hook is not Required:
        values["dictionary.hook_point_out"] = written_hook if is_transcoder(settings) else None
    gate = GATES.get(act_fn(settings))
    if kind == "clt" and gate.joint_layers:
        values["dictionary.top_k_of"] = "token"  # the reference's k is of all layers of a token
    if kind == "crosscoder":
        values["dictionary.crosscoder_norm"] = "sum"
        made.say(
            "sae.hook_points",
            "crosscoder_norm sum: the gate sees the sum of a feature's decoder norms, there each its own",
            counterpart=True,
        )
    for key in ("sae.pretrained_name_or_path", "sae.sae_pretrained_name_or_path"):
        if settings.stated.get(key) is not None:
            values["initializer.from_dictionary"] = settings.stated[key]
            made.say(key, "initializer.from_dictionary, which takes a directory, not a hub id", counterpart=True)
    if settings.stated.get("sae.pretrained_name_or_path") is not None:
        _lay_pretrained(made, hooks)
    if set(_hook_points(values)) == set(hooks):
        values["activations.hook_points"] = None
    folds = settings["fold_activation_scale"]
    if settings["sae.norm_activation"] in NORMS_OF_THE_DATA:
        values["fold.mode"] = "keep"
        if folds and "fold_activation_scale" in settings.stated:
            made.say(
                "fold_activation_scale",
                f"norm_activation {settings['sae.norm_activation']} is no constant to fold; fold.mode keep",
            )
    else:
        values["fold.mode"] = "fold" if folds else "keep"


def _lay_pretrained(made: Translation, hooks: list[str]) -> None:
    """What a pretrained dictionary is is in its own configuration; what its hook points are, the activations say."""
    settings, values = made.settings, made.values
    for key in [key for key in values if key.startswith("dictionary.hook_point")]:
        del values[key]
    if settings.kind in ("clt", "crosscoder"):
        values["dictionary.hook_points_in"] = hooks if settings.kind == "crosscoder" else hooks[: len(hooks) // 2]
        if settings.kind == "clt":
            values["dictionary.hook_points_out"] = hooks[len(hooks) // 2 :]
    else:
        values["dictionary.hook_point_in"] = hooks[0]
        values["dictionary.hook_point_out"] = hooks[1] if len(hooks) > 1 else None
        values["dictionary.kind"] = "transcoder" if settings.kind == "sae" and len(hooks) > 1 else settings.kind
    made.say(
        "sae.pretrained_name_or_path",
        "what it is does not stand here: state dictionary.kind, expansion_factor, act_fn and top_k as its config.json has them",
    )


def _lay_training(made: Translation) -> None:
    """Weights of losses that several keys decide, and where runs are logged."""
    settings, values = made.settings, made.values
    weight = settings["trainer.l1_coefficient"]
    if weight is None:
        values |= {"trainer.l1_coefficient": 1.0, "trainer.l1_coefficient_warmup_steps": 0}
        made.say("trainer.l1_coefficient", "1.0 from the first step, as there", counterpart=True)
    elif weight:
        values["trainer.l1_coefficient"] = weight
    elif settings["trainer.sparsity_loss_type"] is not None:
        made.say("trainer.l1_coefficient", "sparsity_loss_type null: nothing is weighed", counterpart=True)
    if "wandb" in settings.sections:
        values["tracking.wandb.enabled"] = True
        if values["tracking.run_name"] is None:
            del values["tracking.run_name"]
        if "wandb.wandb_project" not in settings.stated:
            del values["tracking.wandb.project"]


def factory(settings: Settings) -> str:
    """The dotted place of the activations' settings: of a generation the file itself, of several the first."""
    if not settings.kind:
        return ""
    return "activation_factory" if "activation_factory" in settings.known else "activation_factories[0]"


def _lay_activations(made: Translation) -> list[str]:
    """Hook points, which are returned, and precisions."""
    settings, values = made.settings, made.values
    place = factory(settings)
    at = f"{place}." if place else ""
    hooks = list(settings[f"{at}hook_points"])
    for other in list(settings.items.get("activation_factories", {}).values())[1:]:
        hooks += [hook for hook in settings[f"{other}.hook_points"] if hook not in hooks]
    if not hooks:
        raise ParamsError(f"{settings.source}: {at}hook_points: the list is empty; name those to take activations from")
    values["activations.hook_points"] = hooks
    if f"{at}buffer_size" in settings.stated:
        if settings[f"{at}buffer_size"] is None:
            made.say(f"{at}buffer_size", "rows are always mixed: activations.buffer_size", counterpart=True)
        else:
            values["activations.buffer_size"] = settings[f"{at}buffer_size"]
    override = settings[f"{at}override_dtype"]
    if settings.kind:
        if override is not None and _delivered(made, f"{at}override_dtype", override):
            values["activations.dtype"] = dtype_name(override)
    else:
        kept = override or settings["model.dtype"]
        if _delivered(made, f"{at}override_dtype" if override else "model.dtype", kept):
            values["activations.storage_dtype"] = dtype_name(kept)
    if values.get("activations.target") == "tokens":
        made.say(f"{at}target", "tokens alone are what the stage tokenize writes; activations-1d here")
        values["activations.target"] = "activations-1d"
    return hooks


def _delivered(made: Translation, place: str, dtype: str) -> bool:
    try:
        return model_dtype(dtype) in MODEL_DTYPES
    except NoCounterpart as refused:
        made.say(place, str(refused))
        return False


def _hook_points(values: Mapping[str, Any]) -> list[str]:
    """The hook points that the dictionary reads or writes."""
    found = [*(values.get("dictionary.hook_points_in") or []), *(values.get("dictionary.hook_points_out") or [])]
    return [*found, *(hook for key in ("hook_point_in", "hook_point_out") if (hook := values.get(f"dictionary.{key}")))]


def written(value: Any) -> str:
    """A value as a file states it, on a line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {written(each)}' for key, each in value.items())}}}"
    return as_written(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
