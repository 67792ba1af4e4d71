"""The settings of an export to Neuronpedia: NAME=VALUE each, by `--set`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DataError, ParamsError, unknown_name
from pipeline.interop.hook_names import layer_and_site
from pipeline.interop.neuronpedia.limits import DESCRIPTION, FEATURES, check_model_id, check_source_set
from pipeline.lm.source import resolve_model

FORMS = ("bulk", "upload", "arrow")
SITE_USER = "clkht01d40000jv08hvalcvly"  # whom a site that one runs oneself begins with


@dataclass(frozen=True)
class Settings:
    """What `--set` may say.

    Attributes:
        model_id: of the model on the site; "": the last part of its name, in small letters.
        model_layers: number of its blocks; 0: what its configuration says.
        source_set: "": scopeline-<dictionary>.
        layer: of the source; None: that of the hook points.
        forms: of the files: bulk, upload, arrow.
        batch_features, batch_bytes: most features, and most bytes, of an upload batch.
        explanation_method, explanation_model: names of explanation types and models that the site knows; "": none is stated.
        creator_id, creator_name, release, description, url, hf_repo, hf_folder: what the bulk files say of the whole; "" of
            release and description: the source set, and what the dictionary is.
        create: make the model and the source set on the site where they are missing.
        backoff_s: seconds before the second try of a request; twice that before the third, and so on.
    """

    model_id: str = ""
    model_layers: int = 0
    source_set: str = ""
    layer: int | None = None
    forms: tuple[str, ...] = FORMS
    batch_features: int = FEATURES
    batch_bytes: int = 4_000_000
    explanation_method: str = ""
    explanation_model: str = ""
    creator_id: str = SITE_USER
    creator_name: str = "Scopeline"
    release: str = ""
    description: str = ""
    url: str = ""
    hf_repo: str = ""
    hf_folder: str = ""
    create: bool = False
    backoff_s: float = 1.0

    def __post_init__(self) -> None:
        faults = [f"--set forms: {unknown_name('form', form, FORMS)}" for form in self.forms if form not in FORMS]
        if not self.forms:
            faults.append(f"--set forms: wanted some of {', '.join(FORMS)}")
        if not 1 <= self.batch_features <= FEATURES:
            faults.append(f"--set batch_features={self.batch_features}: the site takes 1 to {FEATURES} in a batch")
        if self.batch_bytes < 1:
            faults.append(f"--set batch_bytes={self.batch_bytes}: wanted at least 1")
        if not 0 <= self.backoff_s <= 3600:
            faults.append(f"--set backoff_s={self.backoff_s:g}: wanted 0 to 3,600 seconds")
        if faults:
            raise ParamsError(faults)


@dataclass(frozen=True)
class Target:
    """Where the features go on the site.

    Attributes:
        model_id: of the model.
        layers: number of its blocks.
        source_set: name of the set.
        sources: of each layer of the dictionary (one, where it has no layers) the source, `<layer>-<source set>`.
        description: of the set.
    """

    model_id: str
    layers: int
    source_set: str
    sources: tuple[str, ...]
    description: str


def target_of(about: Mapping[str, Any], settings: Settings) -> Target:
    """What the settings and the feature store's metadata say.

    Raises:
        ParamsError: a name is none that the site takes, or the layer is not to be known from the hook points.
        DataError: the model's configuration is not at hand.
    """
    model = str(about["model"])
    model_id = settings.model_id or model.rstrip("/").rpartition("/")[2].lower()
    check_model_id(model_id, new=settings.create)
    source_set = settings.source_set or _words(f"scopeline-{about['name']}")
    check_source_set(source_set)
    description = settings.description or str(about["dictionary"]).replace(model, public_name(model))
    if settings.description and len(description) > DESCRIPTION:
        raise ParamsError(f"--set description: {len(description)} characters, the site takes {DESCRIPTION}")
    layers = _layers(about, settings)
    depth = settings.model_layers or _depth(model)
    beyond = [layer for layer in layers if not 0 <= layer < depth]
    if beyond:
        raise ParamsError(f"--set layer: model '{model}' has {depth} layers, no layer {beyond[0]}")
    return Target(model_id, depth, source_set, tuple(f"{layer}-{source_set}" for layer in layers), description[:DESCRIPTION])


def public_name(name: str) -> str:
    """What a model or a text is called where others read it: of a place on this machine the last part."""
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name


def _words(text: str) -> str:
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def _layers(about: Mapping[str, Any], settings: Settings) -> list[int]:
    """The model's layer of each layer of the dictionary."""
    hooks, shape = list(about["hook_points_in"]), list(about["feature_shape"])
    if len(shape) > 1:
        if settings.layer is not None:
            raise ParamsError(
                f"--set layer={settings.layer}: the dictionary has {shape[0]} layers, each with a source of its own"
            )
    elif settings.layer is not None:
        return [settings.layer]
    places = [layer_and_site(hook) for hook in hooks]
    found = [place[0] for place in places if place is not None]
    if len(shape) > 1 and len(found) == shape[0] and len(set(found)) == len(found):
        return found
    if len(shape) == 1 and len(found) == len(hooks) and len(set(found)) == 1:
        return found[:1]
    raise ParamsError(
        f"--set layer: a source on Neuronpedia is of one layer, and the dictionary reads {', '.join(hooks)}; say which one its "
        "features are listed at"
    )


def _depth(model: str) -> int:
    try:
        return resolve_model(model, any_family=True).n_layers
    except DataError as error:
        raise DataError(f"{error}; or give the number of its blocks by --set model_layers=N") from None
