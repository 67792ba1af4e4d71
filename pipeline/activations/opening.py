"""Open the activations that loaded params ask for, and no others."""

from __future__ import annotations

from pathlib import Path

from pipeline.activations.fingerprint import GenerationSettings, check_made_for
from pipeline.activations.interface import Activations
from pipeline.activations.reader import open_activations
from pipeline.params.schema import Params


def open_for(params: Params, manifest_path: str | Path) -> Activations:
    """Open the activations of a manifest after checking that they were made for `params`.

    Raises:
        DataError: other settings, a hook point of the dictionary is not there, or see
            :func:`pipeline.activations.reader.open_activations`.
    """
    store = open_activations(manifest_path)
    only = None if params.activations.path is None else ("target", "context_size")
    for place, settings in store.settings().items():
        check_made_for(place, settings, GenerationSettings.from_params(params), only=only)
    for name in params.hook_points:
        store.width(name)
    return store
