"""What generate does for live activations: the plan, one batch through each model, and the manifest; seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.activations.computing import BlockRows, Model, require_batch
from pipeline.activations.fingerprint import GenerationSettings, fingerprint_config
from pipeline.activations.generation import ModelFacts, check_tokens
from pipeline.activations.live import plan_live
from pipeline.activations.plan import ContextTokens, Tokens
from pipeline.activations.schema import FORMAT_VERSION, chunk_rows, hook_layouts
from pipeline.contracts.sealing import Origin, sealed
from pipeline.files import fingerprint, write_json
from pipeline.hook_keys import MAIN
from pipeline.params.choices import LIVE


def plan_and_check(
    tokens: Tokens,
    tokens_path: Path,
    facts: Mapping[str, ModelFacts],
    load: Mapping[str, Callable[[Sequence[str]], Model]],
    settings: GenerationSettings,
    manifest_path: Path,
) -> dict[str, Any]:
    """Check that live activations can be computed, and write their manifest.

    Args:
        tokens: the token store; its train split is used.
        tokens_path: where it is; kept in the manifest.
        facts: {alias: what must be known of a model}; the main model's alias is the empty string.
        load: {alias: hook points -> the model}.
        settings: the generation parameters.
        manifest_path: data/activations.json.

    Returns:
        figures for metrics/generate.json, as those of a store; bytes is 0.

    Raises:
        DataError: too little text, or tokens of another context size.
        ParamsError: a model batch cannot be held.
        NumericsError: the first batch has a non-finite activation.
    """
    check_tokens(tokens, settings)
    ignored = tuple(tokens.ignore_token_ids if settings.ignore_token_ids is None else settings.ignore_token_ids)
    contexts = ContextTokens(tokens.train, ignored, settings.ignore_positions)
    inner = None if settings.target == "activations-1d" else settings.context_size
    rows = chunk_rows(facts[MAIN].d_model, settings.storage_dtype, inner)
    plan = plan_live(contexts, settings, rows)
    manifests = {}
    for alias, model in facts.items():
        layouts = {
            name: hook_layouts(name, plan.n_rows, width, inner, rows, settings.storage_dtype)
            for name, width in model.widths.items()
        }
        require_batch(plan, [layout for found in layouts.values() for layout in found])
        if layouts:
            BlockRows(plan, contexts, list(layouts), settings.storage_dtype).measure(load[alias](list(layouts)))
        config = fingerprint_config(settings, tokens_digest=tokens.digest, ignore_token_ids=ignored, model_digest=model.digest)
        manifests[alias] = {
            "source": LIVE,
            "fingerprint": fingerprint(config),
            "hook_points": {
                name: {"shape": list(found[0].shape), "dtype": settings.storage_dtype} for name, found in layouts.items()
            },
            "config": config,
            "model": {"name": model.name, "revision": model.revision},
        }
    main = manifests.pop(MAIN)
    manifest = {
        "format_version": FORMAT_VERSION,
        **main,
        "target": settings.target,
        "n_rows": plan.n_rows,
        "n_tokens": plan.n_rows * (1 if plan.flat else settings.context_size),
        "context_size": settings.context_size,
        "storage_dtype": settings.storage_dtype,
        "chunk_rows": rows,
        "tokens": str(tokens_path),
        **({"models": manifests} if manifests else {}),
    }
    digests = {f"model {alias}".strip(): model.digest for alias, model in facts.items()}
    made_from = {"activations": str(main["fingerprint"]), "tokens": tokens.digest, **digests}
    write_json(manifest_path, sealed(manifest, Origin("generate", made_from)))
    kept = plan.n_rows if plan.flat else int(contexts.kept_counts[plan.contexts].sum())
    return {
        "rows": plan.n_rows,
        "tokens": kept,
        "contexts": len(plan.contexts),
        "tokens_per_context": kept / len(plan.contexts),
        "bytes": 0,
        "hook_points": sum(len(model.widths) for model in facts.values()),
    }
