"""Export: a dictionary in the format of another tool, checked by that format's own pass before it takes its place."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import DataError, ParamsError
from pipeline.files import atomic_directory
from pipeline.interop.hub_paths import is_of_hub
from pipeline.interop.interface import InterchangeFormat, interchange_format
from pipeline.interop.plain import PlainDictionary, plain_of
from pipeline.interop.verification import Difference, check, difference
from pipeline.lm.source import resolve_model
from pipeline.params.interchange import INTERCHANGE_FORMATS
from pipeline.seeding import generator

if TYPE_CHECKING:
    from pipeline.analysis.feature_tables import FeatureStore

DRAWN_TOKENS, DRAWN_CONTEXT = 512, 16
DOUBLINGS = 12  # of drawn activations, until a feature is active


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: what the other tool's loader takes.
        format: its name.
        differences: of each dictionary, from the format's own pass.
        drawn: the activations that it was checked on were drawn, none were given.
        said: what was done to the tensors, a sentence each.
        about: what the files say of the model, or could.
        names: of each dictionary, relative to the path; "": the path.
    """

    path: Path
    format: str
    differences: tuple[Difference, ...]
    drawn: bool
    said: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ("",)

    def lines(self) -> list[str]:
        """For a terminal."""
        on = "drawn activations" if self.drawn else "real activations"
        checks = [f"{self.path}: read back by a pass of {self.format} on {on}: {each.words()}" for each in self.differences]
        return [*(f"{self.path}: {sentence}" for sentence in self.said), *checks]


def export_dictionaries(
    dictionaries: Sequence[Dictionary],
    path: str | Path,
    format: str,
    *,
    activations: Sequence[Tensor] | None = None,
    about: Mapping[str, Any] | None = None,
    features: Sequence[FeatureStore] | None = None,
) -> Export:
    """Write dictionaries (of most formats: one) to `path`, all or nothing.

    Args:
        dictionaries: folded, or trained with a norm that can be folded.
        path: directory; a format that names folders by hook points makes one in it.
        format: name.
        activations: of each dictionary raw ones as it takes them, on which the written files are checked; None: drawn.
        about: model_name, dataset_path, context_size, prepend_bos, model_type where the dictionary does not say them.
        features: the feature store of each dictionary, written as that tool shows features; None: not.

    Raises:
        ParamsError: no such format, or it cannot hold a dictionary.
        DataError: something else lies at `path`, or a feature store is of another dictionary.
        NumericsError: the format's own pass over the written files differs by more than rounding; nothing is written.
    """
    form = interchange_format(format)
    if is_of_hub(path):
        raise ParamsError(f"export: {path} is of the hub; write to a directory, or push by python -m stages.export --to {path}")
    if not dictionaries:
        raise ParamsError("export: no dictionary was given")
    plains = [_prepared(form, _with_about(plain_of(each), about or {})) for each in dictionaries]
    folded = [each if each.config.folded else each.fold(each.config.norms) for each in dictionaries]
    inputs = [_drawn(each) for each in folded] if activations is None else activations
    place = form.place(plains, Path(path))
    _check_free(place, form)
    with atomic_directory(place) as temporary:
        places = form.write(plains, temporary)
        found = [
            check(difference(dictionary, form.forward(own), x, plain.units), f"{place}: {format}")
            for dictionary, plain, own, x in zip(folded, plains, places, inputs, strict=True)
        ]
        if features is not None:
            form.write_features(plains, features, temporary)
    said = tuple(dict.fromkeys(sentence for plain in plains for sentence in plain.said))
    names = tuple("" if own == temporary else own.relative_to(temporary).as_posix() for own in places)
    return Export(place, format, tuple(found), activations is None, said, plains[0].about, names)


def _prepared(form: InterchangeFormat, plain: PlainDictionary) -> PlainDictionary:
    """As the format holds it; what says that it does not names those that do."""
    try:
        return form.prepared(plain)
    except ParamsError as error:
        held = [name for name in INTERCHANGE_FORMATS if _holds(interchange_format(name), plain)]
        raise ParamsError([f"{fault}; formats that hold it: {', '.join(held) or 'none'}" for fault in error.faults]) from None


def _holds(form: InterchangeFormat, plain: PlainDictionary) -> bool:
    try:
        form.prepared(plain)
    except ParamsError:
        return False
    return True


def _check_free(place: Path, form: InterchangeFormat) -> None:
    """Only an earlier export is replaced."""
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    if not place.is_dir() or not (form.recognises(place) or form.inside(place)):
        inside = (
            sorted(each.name for each in place.iterdir() if each.is_dir() and form.recognises(each)) if place.is_dir() else []
        )
        there = f", the dictionaries {', '.join(inside)}, each in a folder of its own," if inside else ""
        raise DataError(
            f"{place}: something else than a dictionary in the format {form.name}{there} is here; give another place by --to"
        )


def _with_about(plain: PlainDictionary, about: Mapping[str, Any]) -> PlainDictionary:
    """With what is known of the model beside."""
    known = {**{key: value for key, value in about.items() if value is not None}, **plain.about}
    if "model_type" not in known and "model_name" in known:
        with contextlib.suppress(DataError):  # not at hand: the names of most families are taken
            known["model_type"] = resolve_model(known["model_name"], known.get("model_revision")).model_type
    return dataclasses.replace(plain, about=known)


def _drawn(dictionary: Dictionary) -> Tensor:
    """Gaussian activations, doubled until a feature is active."""
    config = dictionary.config
    draw = generator(0, "export", "activations")
    shape: tuple[int, ...] = (DRAWN_TOKENS,) if dictionary.input_dims == 1 else (DRAWN_TOKENS, len(dictionary.hooks_in))
    if dictionary.reads_sequences:
        length = min(DRAWN_CONTEXT, dictionary.max_context or DRAWN_CONTEXT)
        shape = (DRAWN_TOKENS // length, length)
    x = torch.randn(*shape, config.d_in, generator=draw, dtype=torch.float64)
    wide = dictionary.rebuilt_as(torch.float64)
    for _ in range(DOUBLINGS):
        if bool((wide.encode(x) != 0).any()):
            return x
        x = x * 2
    return x
