"""Where the activations of settings come from: their data sets and sources, as `dataset` and `activations.source`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pipeline.errors import ParamsError, unknown_name
from pipeline.params.choices import LIVE, STORE
from pipeline.params.sections.model import ALIAS

if TYPE_CHECKING:
    from pipeline.params.lm_saes.translation import Translation

# Of activations that are read from files, what made them: it is not stated, and stays as the parameter file has it.
MAKING = (
    "model", "models", "dataset", "activations.path", "activations.total_tokens", "activations.context_size",
    "activations.model_batch_size", "activations.buffer_shuffle", "activations.storage_dtype",
)  # fmt: skip


def lay_text(made: Translation) -> None:
    """Text, model and source of activations.

    Raises:
        ParamsError: a source names a data set that is not stated.
    """
    settings, values = made.settings, made.values
    if "model" in settings.sections and (path := settings["model.model_from_pretrained_path"]) is not None:
        values["model.model_name"] = path
    if not settings.kind:
        _lay_generation(made)
        return
    sources = _sources(made)
    if not sources:
        values["activations.source"] = STORE
        made.left = MAKING
        return
    values["activations.source"] = LIVE
    _lay_sizes(made)
    if "model" not in settings.sections:
        made.left = ("model", "models")
        made.say("model_name", "what it names is not stated, so that the parameter file's model stays: state model.model_name")
    if len(sources) == 1:
        values |= {f"dataset.{key}": value for key, value in _dataset(sources[0][1], made).items()}
        values["dataset.sources"] = None
        return
    named: dict[str, Any] = {}
    for name, place, weight in sources:
        named[_alias(name, named)] = {**_dataset(place, made), "weight": weight}
    values["dataset.sources"] = named


def _lay_generation(made: Translation) -> None:
    settings, values = made.settings, made.values
    made.whole = False
    values["activations.source"], values["activations.path"] = STORE, None
    if settings["total_tokens"] is not None:
        values["activations.total_tokens"] = settings["total_tokens"]
    if "dataset" in settings.sections:
        values |= {f"dataset.{key}": value for key, value in _dataset("dataset", made).items()}
        values["dataset.sources"] = None
    else:
        made.say(
            "dataset_name",
            "no data set is stated, and params.yaml's stays: state dataset.dataset_name_or_path",
            counterpart=True,
        )


def _sources(made: Translation) -> list[tuple[str, str, float]]:
    """(name, place of its data set, weight) of each source that is text, each data set once."""
    settings = made.settings
    known = settings.items.get("datasets", {})
    found: list[tuple[str, str, float]] = []
    for factory in settings.items.get("activation_factories", {"": "activation_factory"}).values():
        for place in settings.items[f"{factory}.sources"].values():
            name = settings[f"{place}.name"]
            if settings[f"{place}.type"] == "activations":
                made.say(f"{place}.type", "activations that the reference has written are not read; generate them here")
                continue
            if name not in known:
                raise ParamsError(
                    f"{settings.source}: {place}.name: {unknown_name('data set', name, known)}; state it in datasets"
                )
            if name not in [each for each, *_ in found]:
                found.append((name, known[name], settings[f"{place}.sample_weights"]))
    for name, place in known.items():
        if name not in [each for each, *_ in found]:
            made.say(f"{place}.dataset_name_or_path", "no source reads it, there either", counterpart=True)
    return found


def _dataset(place: str, made: Translation) -> dict[str, Any]:
    return {"dataset_name_or_path": made.settings[f"{place}.dataset_name_or_path"]}


def _alias(name: str, taken: dict[str, Any]) -> str:
    """A name that dataset.sources takes, which no other source has."""
    made = re.sub(r"[^A-Za-z0-9_-]+", "-", name).lstrip("-0123456789") or "source"
    assert re.fullmatch(ALIAS, made), made
    return made if made not in taken else next(each for n in range(2, 10**6) if (each := f"{made}-{n}") not in taken)


def _lay_sizes(made: Translation) -> None:
    """The length of a context, and as many tokens as are trained on."""
    settings, values = made.settings, made.values
    factory = "activation_factory" if "activation_factory" in settings.known else "activation_factories[0]"
    size = settings[f"{factory}.context_size"]
    if size is None:
        size = settings["sae.n_ctx"] if settings.kind == "lorsa" else settings["model.max_length"]
        made.say(
            f"{factory}.context_size",
            f"each document has its own length there; here contexts of {size} tokens, packed",
            counterpart=True,
        )
    values["activations.context_size"] = size
    values["activations.total_tokens"] = settings["trainer.total_training_tokens"]
