"""From a finished collection to the feature store, a block of features at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.analysis.attribution import LogitEffects, logit_effects, writes_residual_stream, written_directions
from pipeline.analysis.decoder_neighbours import decoder_neighbours, decoder_rows, written_cosines
from pipeline.analysis.feature_columns import CONTEXTS, FEATURES
from pipeline.analysis.feature_counts import histogram_edges
from pipeline.analysis.feature_tables import (
    FORMAT_VERSION,
    TableWriter,
    contexts_schema,
    features_schema,
)
from pipeline.analysis.shown_contexts import context_columns
from pipeline.analysis.texts import feature_name
from pipeline.dictionaries.fold import EPS_NORM
from pipeline.plots.training_report import describe
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.analysis.collection import Collection
    from pipeline.analysis.loading import Loaded
    from pipeline.analysis.tracing import AnalysedContexts
    from pipeline.dictionaries.base import Dictionary
    from pipeline.params.schema import Params

BLOCK = 256


@dataclass(frozen=True)
class Written:
    """What belongs to the features themselves, all on the CPU.

    Attributes:
        norms: [F, written hook points], L2 norm of what a feature of activation 1 writes there.
        cosines: [F, pairs of written hook points], see `written_cosines`; None of one hook point.
        thresholds: [F], the activations above which a JumpReLU gate lets through; None: no such gate.
        decoder, coactive: (features [F, n], similarities [F, n]); -1: fewer.
        directions: what it writes to the residual stream [F, D]; None: nothing there.
    """

    norms: Tensor
    cosines: Tensor | None
    thresholds: Tensor | None
    decoder: tuple[Tensor, Tensor]
    coactive: tuple[Tensor, Tensor]
    directions: Tensor | None


def written(found: Loaded, collection: Collection, neighbours: int) -> Written:
    """Norms, thresholds, neighbours and directions of all features."""
    dictionary, coactivation = found.dictionary, collection.coactivation
    rows = decoder_rows(dictionary)
    compared = len(rows[0]) if neighbours else 0
    progress = Progress("similar features", compared, unit="features")
    decoder = decoder_neighbours(rows, neighbours, progress=progress)
    if neighbours:
        progress.close()
    progress = Progress("features active together", compared, unit="features")
    coactive = coactivation.neighbours(neighbours, progress=progress)
    if neighbours:
        progress.close()
    thresholds = activation_thresholds(dictionary)
    directions = None
    if writes_residual_stream(dictionary):
        directions = written_directions(dictionary, found.norms, found.alias)
    return Written(
        norms=torch.stack([part.norm(dim=1) for part in rows], dim=1).cpu(),
        cosines=written_cosines(rows),
        thresholds=None if thresholds is None else thresholds.flatten().cpu(),
        decoder=decoder,
        coactive=coactive,
        directions=directions,
    )


@torch.no_grad()
def activation_thresholds(dictionary: Dictionary) -> Tensor | None:
    """The activation above which each feature's JumpReLU gate lets through: theta / s for z = h * s; None: no such gate."""
    thresholds, scale = dictionary.thresholds(), dictionary.gating_scale(dictionary.decoder_norms())
    return thresholds if thresholds is None or scale is None else thresholds / scale.clamp_min(EPS_NORM)


def about_store(found: Loaded, collection: Collection, params: Params) -> dict[str, Any]:
    """The metadata of the feature store."""
    config = found.dictionary.config
    softcap = found.models[found.alias].unembedding().softcap if writes_residual_stream(found.dictionary) else None
    return {
        "format_version": FORMAT_VERSION,
        "dictionary": describe(config.to_dict(), params.language_model(found.alias).model_name, layers=config.layers),
        "name": config.name,
        "kind": config.kind,
        "folded": config.folded,
        "hook_points_in": list(found.dictionary.hooks_in),
        "hook_points_out": list(found.dictionary.hooks_out),
        "feature_shape": list(found.dictionary.feature_shape),
        "model": params.language_model(found.alias).model_name,
        "split": params.analysis.split,
        "tokens": collection.counts.tokens,
        "excluded_tokens": collection.excluded,
        "coactivation_tokens": collection.coactivation.tokens,
        "histogram_edges": histogram_edges(),
        **({} if softcap is None else {"logit_softcap": softcap}),
    }


def write_store(
    folder: Path, found: Loaded, collection: Collection, contexts: AnalysedContexts, params: Params, about: Mapping[str, Any]
) -> None:
    """Write both files into a directory that is there."""
    every = written(found, collection, params.analysis.neighbours)
    total = len(every.norms)
    energies = collection.counts.squares.cpu() * every.norms.double().square().sum(1)
    energies /= energies.sum().clamp_min(1e-300)
    features = TableWriter(folder / FEATURES, features_schema(), about)
    shown = TableWriter(folder / CONTEXTS, contexts_schema(), about)
    progress = Progress("write features", total, unit="features")
    for start in range(0, total, BLOCK):
        some = slice(start, min(start + BLOCK, total))
        effects = None
        if every.directions is not None:
            effects = logit_effects(every.directions[some], found.models[found.alias], params.analysis.logit_tokens)
        features.write(feature_columns(some, collection, every, energies, effects, found, contexts))
        shown.write(context_columns(some, collection, contexts, params.analysis))
        progress.update(some.stop - start)
    features.close()
    shown.close()
    progress.close()


def feature_columns(
    some: slice,
    collection: Collection,
    every: Written,
    energies: Tensor,
    effects: LogitEffects | None,
    found: Loaded,
    contexts: AnalysedContexts,
) -> dict[str, list[Any]]:
    """The columns of features.parquet for a block."""
    shape, counts = tuple(found.dictionary.feature_shape), collection.counts
    index = list(range(some.start, some.stop))
    active = counts.active[some].cpu()

    def tokens(part: tuple[Tensor, Tensor]) -> list[list[dict[str, Any]]]:
        return [
            [{"token": i, "text": contexts.text(i), "logit": value} for value, i in zip(values, ids, strict=True)]
            for values, ids in zip(part[0].tolist(), part[1].tolist(), strict=True)
        ]

    def near(part: tuple[Tensor, Tensor], name: str) -> list[list[dict[str, Any]]]:
        pairs = zip(part[0][some].tolist(), part[1][some].tolist(), strict=True)
        return [[{"feature": i, name: v} for i, v in zip(ids, values, strict=True) if i >= 0] for ids, values in pairs]

    empty: list[Any] = [None] * len(index)
    return {
        "feature": index,
        "name": [feature_name(i, shape) for i in index],
        "layer": [i // shape[-1] for i in index] if len(shape) > 1 else empty,
        "active_tokens": active.tolist(),
        "density": (active.double() / max(counts.tokens, 1)).tolist(),
        "max_activation": counts.largest[some].tolist(),
        "mean_activation": (counts.sums[some].cpu() / active.clamp_min(1)).tolist(),
        "energy": energies[some].tolist(),
        "decoder_norm": every.norms[some].norm(dim=1).tolist(),
        "written_norms": every.norms[some].tolist(),
        "written_cosines": empty if every.cosines is None else _without_nan(every.cosines[some].tolist()),
        "threshold": empty if every.thresholds is None else every.thresholds[some].tolist(),
        "histogram": counts.histogram[some].tolist(),
        "logit_kurtosis": empty if effects is None else [v if math.isfinite(v) else None for v in effects.kurtosis.tolist()],
        "promoted": empty if effects is None else tokens(effects.promoted),
        "suppressed": empty if effects is None else tokens(effects.suppressed),
        "decoder_neighbours": near(every.decoder, "cosine"),
        "coactive_neighbours": near(every.coactive, "jaccard"),
    }


def _without_nan(rows: list[list[float]]) -> list[list[float | None]]:
    return [[value if math.isfinite(value) else None for value in row] for row in rows]
