"""Open the activations that a manifest describes, wherever they come from; and those that loaded params ask for, no others."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.activations.computing import Model
from pipeline.activations.fingerprint import GenerationSettings, check_made_for
from pipeline.activations.interface import Activations
from pipeline.activations.joining import join_
from pipeline.activations.live import LiveActivations, LiveModel
from pipeline.activations.reader import ActivationStore, open_store
from pipeline.activations.schema import REGENERATE, store_root
from pipeline.arguments import A_PATH, checked
from pipeline.contracts.sealing import unsealed
from pipeline.errors import DataError
from pipeline.files import fingerprint, read_json, root
from pipeline.hook_keys import MAIN
from pipeline.params.choices import LIVE, STORE
from pipeline.params.schema import Params


def open_for(params: Params, manifest_path: str | Path) -> Activations:
    """Open the activations of a manifest after checking that they were made for `params`.

    Raises:
        DataError: other settings, a hook point of the dictionary is not there, or see :func:`open_activations`.
    """
    store = open_activations(manifest_path, device=params.model.device, device_map=params.model.device_map)
    if store.source != params.activations.source:
        raise DataError(
            f"{manifest_path}: made for activations.source {store.source}, not {params.activations.source}; {REGENERATE}"
        )
    only = None if params.activations.path is None else ("target", "context_size")
    for place, settings in store.settings().items():
        check_made_for(place, settings, GenerationSettings.from_params(params), only=only)
    for name in params.hook_points:
        store.width(name)
    return store


@checked(manifest_or_store=A_PATH)
def open_activations(manifest_or_store: str | Path, *, device: str | None = None, device_map: str | None = None) -> Activations:
    """Open activations by their manifest (data/activations.json), or a store by its directory.

    Args:
        manifest_or_store: a manifest, whose store is looked up under $SCOPELINE_STORE, else in store/ beside the manifest or
            in data/store under the checkout; or a store's directory.
        device: where the language model of live activations runs; None: cuda if there is one, else cpu.
        device_map: "auto": on all devices.

    Raises:
        DataError: the manifest or the store is missing, incomplete or damaged, or the store is not the manifest's.
    """
    path = Path(manifest_or_store)
    if os.path.isdir(path):
        return open_store(path)
    manifest = _read_manifest(path)
    if manifest.get("source", STORE) == LIVE:
        return _open_live(manifest, path, functools.partial(_load_model, device, device_map))
    store = _open_manifest(manifest, path)
    others = manifest.get("models", {})
    return join_(store, {alias: _open_manifest(other, path) for alias, other in others.items()})


def open_live(manifest: Path, model: Model) -> LiveActivations:
    """Open the live activations of a manifest with a model that is loaded.

    Raises:
        DataError: as :func:`open_activations`.
    """
    return _open_live(_read_manifest(manifest), manifest, lambda *_: model)


def _read_manifest(path: Path) -> dict[str, Any]:
    what = "the manifest of the activations"
    return unsealed(read_json(path, what, REGENERATE), path, what, next_action=REGENERATE)[0]


def _open_live(manifest: Mapping[str, Any], path: Path, load: Callable[..., Model]) -> LiveActivations:
    """`load` is called with what the manifest says of a model, its settings, and the hook points to compute (None: all)."""
    try:
        others = manifest.get("models", {})
        models = {alias: _live_model(about, load) for alias, about in {MAIN: manifest, **others}.items()}
        about: dict[str, Any] = {name: int(manifest[name]) for name in ("n_rows", "chunk_rows")}
        about["model"] = dict(manifest["model"])
        if others:
            about["model"]["models"] = {alias: dict(other["model"]) for alias, other in others.items()}
        return LiveActivations(path, about, models, root() / str(manifest["tokens"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: the manifest of live activations is damaged ({error!r}); {REGENERATE}") from None


def _live_model(about: Mapping[str, Any], load: Callable[..., Model]) -> LiveModel:
    config, widths = about["config"], {str(name): int(hook["shape"][-1]) for name, hook in about["hook_points"].items()}
    if about["fingerprint"] != fingerprint(config):
        raise ValueError("its fingerprint is not that of its settings")
    return LiveModel(widths, config, about["fingerprint"], functools.partial(load, about["model"], config))


def _load_model(
    device: str | None,
    device_map: str | None,
    model: Mapping[str, Any],
    config: Mapping[str, Any],
    hook_points: Sequence[str] | None,
) -> Model:
    """The language model of live activations.

    Raises:
        DataError: it is not the one that the activations were planned with.
    """
    from pipeline.lm.loading import load_language_model, model_widths

    name, revision = model["name"], model["revision"]
    digest = model_widths(name, revision, backend=config["backend"]).digest()
    if digest != config["model_digest"]:
        raise DataError(
            f"{name}: the language model is another one than live activations were planned with (digest "
            f"{config['model_digest'][:12]}, found {digest[:12]}); {REGENERATE}"
        )
    return load_language_model(
        name,
        revision=revision,
        backend=config["backend"],
        dtype=config["model_dtype"],
        attention=config.get("attention", "auto"),
        device=device,
        hook_points=hook_points,
        device_map=device_map,
        quantization=config.get("quantization"),
    )


def _beside(manifest: Path, name: str) -> Path:
    """The store of that name: beside the manifest, which a notebook in another directory opens, or under the store root."""
    beside = manifest.resolve().parent / "store" / name
    return beside if os.path.isdir(beside) and not os.environ.get("SCOPELINE_STORE") else store_root() / name


def _open_manifest(manifest: Any, path: Path) -> ActivationStore:
    """The store of one model that the manifest at `path` describes."""
    try:
        place = root() / manifest["path"] if manifest["path"] else _beside(path, manifest["store"])
        hooks = {str(name): about["digest"] for name, about in manifest["hook_points"].items()}
        wanted, digests = str(manifest["fingerprint"]), {**manifest["digests"], **hooks}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: the manifest of the activation store is damaged ({error!r}); {REGENERATE}") from None
    store = open_store(place, list(hooks))
    if store.fingerprint != wanted:
        raise DataError(
            f"{store.path}: the activation store was made for other parameters: its fingerprint is {store.fingerprint}, "
            f"the manifest {path} wants {wanted}; {REGENERATE}"
        )
    if store.model != manifest.get("model", store.model):  # a manifest of an earlier version has none
        raise DataError(
            f"{store.path}: activation store: altered: its model is {store.model}, the manifest {path} has "
            f"{manifest['model']}; {REGENERATE}"
        )
    for name, digest in digests.items():
        if store.array(name).digest != digest:
            raise DataError(
                f"{store.path}: activation store, array '{name}': altered: its content digest is {store.array(name).digest}, "
                f"the manifest {path} has {digest}; {REGENERATE}"
            )
    return store
