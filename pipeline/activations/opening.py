"""Open the store that loaded params ask for, and no other."""

from __future__ import annotations

from pathlib import Path

from pipeline.activations.fingerprint import GenerationSettings, check_made_for
from pipeline.activations.reader import ActivationStore, open_activations
from pipeline.params.schema import Params


def open_for(params: Params, manifest_path: str | Path) -> ActivationStore:
    """Open the store of a manifest after checking that it was made for `params`.

    Raises:
        DataError: other settings, a hook point of the dictionary is not in it, or see
            :func:`pipeline.activations.reader.open_activations`.
    """
    store = open_activations(manifest_path)
    only = None if params.activations.path is None else ("target", "context_size")
    for each in (store, *store.joined.values()):
        check_made_for(each.path, each.config, GenerationSettings.from_params(params), only=only)
    for name in params.hook_points:
        store.array(name)
    return store
