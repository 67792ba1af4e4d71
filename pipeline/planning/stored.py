"""Whether a run's activation store is there already, by its fingerprint, so that generate only verifies it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError
from pipeline.hook_keys import MAIN, by_model
from pipeline.params.choices import LIVE

if TYPE_CHECKING:
    from pipeline.params.schema import Params
    from pipeline.planning.sources import Sources


def is_stored(params: Params, sources: Sources, tokens: str | Path) -> bool:
    """Whether the stores of all models are there, finished, with the hook points of the run.

    Args:
        params: all parameters.
        sources: of the models.
        tokens: the token store.
    """
    from pipeline.activations.fingerprint import GenerationSettings, fingerprint_config
    from pipeline.activations.reader import open_store
    from pipeline.activations.schema import store_root
    from pipeline.corpus.tokens import open_tokens
    from pipeline.files import fingerprint

    if params.activations.source == LIVE or params.activations.path is not None:
        return False
    try:
        place = store_root()
        if not place.is_dir() or not any(entry.is_dir() for entry in place.iterdir()):
            return False  # the digest of a model reads all its weights
        store, settings, hooks = open_tokens(tokens), GenerationSettings.from_params(params), by_model(params.hook_points)
        ignored = store.ignore_token_ids if settings.ignore_token_ids is None else settings.ignore_token_ids
        for alias in dict.fromkeys((MAIN, *hooks)):
            digest = sources.models[alias].digest()
            config = fingerprint_config(
                settings, tokens_digest=store.digest, ignore_token_ids=tuple(ignored), model_digest=digest
            )
            open_store(place / fingerprint(config), hooks.get(alias, []))
    except PipelineError:
        return False
    return True
