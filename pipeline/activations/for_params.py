"""From loaded params to activations: generate a store, only verify an existing one, or plan live ones."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.activations.computing import Model
from pipeline.activations.fingerprint import GenerationSettings, check_made_for
from pipeline.activations.generation import ModelFacts, generate_store, store_manifest
from pipeline.activations.joining import join_
from pipeline.activations.live_plan import plan_and_check
from pipeline.activations.reader import ActivationStore, holds_store, open_store
from pipeline.activations.schema import ROW_ARRAYS, store_root
from pipeline.contracts.sealing import Origin, sealed
from pipeline.corpus.tokens import TokenStore, open_tokens
from pipeline.errors import DataError
from pipeline.files import near, root, write_json
from pipeline.hook_keys import MAIN, by_model
from pipeline.params.choices import LIVE
from pipeline.params.schema import Params
from pipeline.processes import ONE_PROCESS, Reductions
from pipeline.progress import Progress


def other_tokenizer(alias: str, name: str, main: str, tokens: Path | str) -> DataError:
    """The error for a further model that reads tokens otherwise than the main one."""
    return DataError(
        f"models.{alias}: {name} has another tokenizer than {main}, with which {tokens} was made, so that its activations "
        "would be of other text; compare models of one tokenizer"
    )


class ModelConfiguration(Protocol):
    """What a model's configuration says, without its weights (pipeline.lm.loading.model_widths)."""

    @property
    def name(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def d_model(self) -> int: ...
    def hook_width(self, hook_point: str) -> int: ...
    def digest(self) -> str: ...


def generate_for(
    params: Params,
    find_model: Callable[[Any], ModelConfiguration],
    load_model: Callable[[Any, Sequence[str]], Model],
    tokens_path: Path,
    manifest_path: Path,
    tokenizer_digest: Callable[[Any], str | None] | None = None,
    processes: Reductions = ONE_PROCESS,
) -> dict[str, Any]:
    """Make the activations that `params` ask for, a store for each model, and write their manifest.

    Where `activations.path` names an existing store, it is verified to the last byte instead, and the manifest says where
    it is. Live activations are planned and tried instead.

    Args:
        params: loaded params.
        find_model: parameters of a model -> its configuration; called unless an existing store is named.
        load_model: parameters of a model, hook points to compute -> the model itself; called if there are any.
        tokens_path: data/tokens.zarr.
        manifest_path: data/activations.json.
        tokenizer_digest: parameters of a model -> digest of its tokenizer, None where it has none; None: not compared.
        processes: that generate together. The first one alone verifies, plans, and writes the manifest.

    Returns:
        figures for metrics/generate.json: rows, tokens, contexts, tokens_per_context (kept ones), bytes, hook_points; of other
        processes than the first none.

    Raises:
        DataError: a further model has another tokenizer than the tokens.
        DataError, NumericsError: see :func:`pipeline.activations.generation.generate_store`.
    """
    settings = GenerationSettings.from_params(params)
    stated = params.activations.path
    if processes.rank != 0 and (stated is not None or params.activations.source == LIVE):
        return {}
    if stated is not None:
        store = _existing(stated, params.hook_points, settings)
        write_json(manifest_path, sealed(store_manifest(store, stated), Origin("generate", store.made_from())))
        return _figures(store)
    hook_points = by_model(params.hook_points)
    wanted = {alias: hook_points.get(alias, []) for alias in dict.fromkeys((MAIN, *hook_points))}
    tokens = open_tokens(tokens_path)
    facts = {alias: _facts(params, alias, hooks, find_model, tokens, tokenizer_digest) for alias, hooks in wanted.items()}
    load = {alias: functools.partial(load_model, params.language_model(alias)) for alias in wanted}
    if params.activations.source == LIVE:
        return plan_and_check(tokens, tokens_path, facts, load, settings, manifest_path)

    paths = {alias: generate_store(tokens, facts[alias], load[alias], settings, store_root(), processes) for alias in wanted}
    if processes.rank != 0:
        return {}
    store, *_ = opened = [open_store(path, wanted[alias]) for alias, path in paths.items()]
    others = {alias: other for alias, other in zip(paths, opened, strict=True) if alias != MAIN}
    manifest = store_manifest(store)
    if others:
        manifest["models"] = {alias: store_manifest(other) for alias, other in others.items()}
    join_(store, others)
    write_json(manifest_path, sealed(manifest, Origin("generate", store.made_from())))
    return _figures(store)


def _facts(
    params: Params,
    alias: str,
    hook_points: Sequence[str],
    find_model: Callable[[Any], ModelConfiguration],
    tokens: TokenStore,
    tokenizer_digest: Callable[[Any], str | None] | None,
) -> ModelFacts:
    """What must be known of a model whose tokenizer is that of the tokens."""
    stated = params.language_model(alias)
    model = find_model(stated)
    facts = ModelFacts(
        name=model.name,
        revision=model.revision,
        digest=model.digest(),
        d_model=model.d_model,
        widths={name: model.hook_width(name) for name in hook_points},
    )
    has = tokenizer_digest(stated) if tokenizer_digest is not None else None
    if alias and tokenizer_digest is not None and has != tokens.tokenizer_digest:
        raise other_tokenizer(alias, model.name, params.model.model_name, tokens.path)
    if has is not None:
        tokens.check_tokenizer(has, model.name)
    return facts


def open_stated_store(stated: str, hook_points: tuple[str, ...], settings: GenerationSettings) -> ActivationStore:
    """The store that `activations.path` names; what its chunks hold is not looked at.

    Raises:
        DataError: there is none, it is incomplete, lacks a hook point, or has rows of another kind.
    """
    path = root() / stated
    if not os.path.isdir(path):
        raise DataError(
            f"activations.path: {path}: no such activation store{near(path, holds_store)}; give the directory of one, or null "
            "to generate"
        )
    store = open_store(path, hook_points)
    check_made_for(path, store.config, settings, only=("target", "context_size"))
    return store


def _existing(stated: str, hook_points: tuple[str, ...], settings: GenerationSettings) -> ActivationStore:
    store = open_stated_store(stated, hook_points, settings)
    progress = Progress("verify", sum(store.array(name).layout.shape[0] for name in store.digests), unit="rows")
    store.verify(progress.update)
    progress.close()
    return store


def _figures(store: ActivationStore) -> dict[str, Any]:
    contexts, kept = _contexts_and_kept(store)
    arrays = [store.array(name) for name in store.digests]
    arrays += [other.array(name) for other in store.joined.values() for name in ROW_ARRAYS]
    return {
        "rows": store.n_rows,
        "tokens": kept,
        "contexts": contexts,
        "tokens_per_context": kept / contexts,
        "bytes": sum(array.stored_bytes for array in arrays),
        "hook_points": len(store.hook_points),
    }


def _contexts_and_kept(store: ActivationStore) -> tuple[int, int]:
    """Number of contexts with a row in the store, and of kept tokens."""
    seen: set[int] = set()
    kept = 0
    for start in range(0, store.n_rows, store.chunk_rows):
        meta = store.read_rows_meta(start, start + store.chunk_rows)
        seen.update(meta.context_ids.unique().tolist())
        kept += int(meta.mask.sum())
    return len(seen), kept
