"""Import: a dictionary of another tool as one of ours, folded, on raw activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.formats.interface import dictionary_format, members_at
from pipeline.dictionaries.store import load_dictionary
from pipeline.errors import DataError
from pipeline.interop.hub import local_copy
from pipeline.interop.hub_paths import is_of_hub
from pipeline.interop.openmoss import expansion_factor
from pipeline.interop.plain import PlainDictionary, dictionary_of
from pipeline.interop.recognition import format_and_place
from pipeline.lm.loading import model_widths
from pipeline.params.dictionary_formats import DICTIONARY_FORMATS, OWN

UNNAMED = {"input", "output"}  # hook points of a dictionary whose files name none


@dataclass(frozen=True)
class Import:
    """A dictionary that was read.

    Attributes:
        dictionary: folded, on raw activations.
        format: in which it was found.
        said: what was done to its tensors, or is not carried on.
    """

    dictionary: Dictionary
    format: str
    said: tuple[str, ...] = ()


def is_foreign(path: str | Path) -> bool:
    """Whether what is at `path` is in none of our own formats (nor a sweep, nor nothing)."""
    if is_of_hub(path):
        return True
    place = Path(path)
    return place.exists() and not members_at(place) and not _own(place)


def _own(place: Path) -> str | None:
    return next((each for each in DICTIONARY_FORMATS if dictionary_format(each).recognises(place)), None)


def import_from(
    path: str | Path,
    format: str | None = None,
    *,
    name: str = "main",
    hook_point_in: str | None = None,
    hook_point_out: str | None = None,
) -> Import:
    """Read a dictionary of any known format.

    Args:
        path: directory, file, or hf:user/repository[/folder][@revision].
        format: None: told by the files.
        name: of the dictionary that is made.
        hook_point_in, hook_point_out: what is read and written, where the files do not say it, or by another name.

    Raises:
        ParamsError: no such format.
        DataError: nothing that is known is there, it is damaged, contradicts itself, or has no counterpart here.
    """
    copy = local_copy(path, format)
    own = _own(copy.path) if format is None else format if format in DICTIONARY_FORMATS else None
    if own is not None:
        return Import(_recorded(load_dictionary(copy.path), copy.origin), own, copy.said)
    form, place = format_and_place(copy.path, format)
    folder = place.parent if place.is_file() else place
    try:
        plain = renamed(form.read(place), hook_point_in, hook_point_out)
        origin = {"format": form.name, "about": dict(plain.about), "said": list(plain.said), **copy.origin}
        model = {"name": plain.about.get("model_name"), "revision": plain.about.get("model_revision")}
        made = dictionary_of(plain, {"imported": origin, "model": model}, name)
    except DataError as error:
        raise DataError([fault if str(folder) in fault else f"{place}: {fault}" for fault in error.faults]) from None
    return Import(made, form.name, (*copy.said, *plain.said))


def _recorded(dictionary: Dictionary, origin: Mapping[str, Any]) -> Dictionary:
    """One of our own format, with where it was fetched from; a local one as it is."""
    if "repository" in origin:
        imported = {"format": OWN, **origin}
        provenance = {**dictionary.config.provenance, "imported": imported}
        dictionary.config = dataclasses.replace(dictionary.config, provenance=provenance)
    return dictionary


def renamed(plain: PlainDictionary, hook_point_in: str | None, hook_point_out: str | None) -> PlainDictionary:
    """With other names for its one hook point read and written.

    Raises:
        DataError: it has several.
    """
    if hook_point_in is None and hook_point_out is None:
        return plain
    if len(plain.hooks_in) > 1:
        raise DataError(
            f"--hook-point-in: this {plain.kind} has {len(plain.hooks_in)} hook points; they cannot be renamed by one"
        )
    read = hook_point_in or plain.hooks_in[0]
    same = plain.kind == "sae"
    if same and hook_point_out not in (None, read):
        raise DataError(f"--hook-point-out: an autoencoder writes what it reads, {read}; leave the option out")
    return dataclasses.replace(plain, hooks_in=(read,), hooks_out=(read,) if same else (hook_point_out or plain.hooks_out[0],))


def check_model(dictionary: Dictionary, model: str, revision: str | None = None, *, path: str | Path = "dictionary") -> None:
    """Refuse a dictionary whose hook points or width a language model does not have; its configuration is read, no weights.

    Args:
        dictionary: that was read.
        model, revision: the language model.
        path: where the dictionary is, for the message.

    Raises:
        DataError: the files named no hook point, no such model, no such hook point (the message has the nearest), or another
            width.
    """
    options = "--hook-point-in" if dictionary.config.kind == "sae" else "--hook-point-in and --hook-point-out"
    if UNNAMED & {*dictionary.hooks_in, *dictionary.hooks_out}:
        raise DataError(f"{path}: its files name no hook point that is known here; name it by {options} (blocks.L.NAME)")
    source = model_widths(model, revision)
    stated = dictionary.config.provenance.get("model", {}).get("name")
    hint = f"set model.model_name to the dictionary's model{f' ({stated})' if stated else ', which its files do not name'}"
    pairs = [(hook, dictionary.config.d_in) for hook in dictionary.hooks_in]
    pairs += [(hook, dictionary.config.d_out) for hook in dictionary.hooks_out]
    for hook, width in pairs:
        try:
            found = source.hook_width(hook)
        except DataError as error:
            raise DataError([f"{path}: {fault}; name it by {options}, or {hint}" for fault in error.faults]) from None
        if found != width:
            raise DataError(f"{path}: hook point '{hook}': its width is {width}, that of model '{model}' {found}; {hint}")


def next_steps(found: Import, place: Path) -> list[str]:
    """What was written, and how the stages take it, a line each."""
    config = found.dictionary.config
    width = f"{'x'.join(map(str, found.dictionary.feature_shape))} features of width {config.d_in}"
    stated = " ".join(f"-S '{key}={value}'" for key, value in start_parameters(found.dictionary, place).items())
    return [
        f"{place}: {config.kind}, {config.act_fn}, {width}, read as {found.format}",
        f"{place}: a run starts from it by: {stated}",
        f"{place}: evaluate and analyze take it with dictionary.name: {place.name} and norms of its hook points",
    ]


def start_parameters(dictionary: Dictionary, place: Path) -> dict[str, str]:
    """{parameter: value as -S takes it} of a run that starts from a folded dictionary at `place`."""
    config, several = dictionary.config, len(dictionary.hooks_in) > 1
    found = {"initializer.from_dictionary": str(place), "dictionary.kind": config.kind, "dictionary.act_fn": config.act_fn}
    for side, names in (("in", dictionary.hooks_in), ("out", dictionary.hooks_out)):
        key = f"dictionary.hook_point{'s' if several else ''}_{side}"
        found[key] = f"[{','.join(names)}]" if several else names[0]
    found["dictionary.expansion_factor"] = f"{expansion_factor(config.d_sae, config.d_in):.17g}"
    if config.gate.budgeted:
        found["dictionary.top_k"] = str(config.top_k)
    for key in ("use_glu_encoder", "skip"):
        if getattr(config, key, False):
            found[f"dictionary.{key}"] = "true"
    if getattr(config, "top_k_of", "layer") != "layer":
        found["dictionary.top_k_of"] = str(config.top_k_of)
    return found
