"""The rows that a store of these parameters will have, known before there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.hook_keys import MAIN

if TYPE_CHECKING:
    from pipeline.params.schema import Params
    from pipeline.planning.sources import Sources


@dataclass(frozen=True)
class PlannedRows:
    """What `training_rows` asks of a store.

    Attributes:
        target, context_size: as activations has them.
        n_rows: rows; of activations-2d as many as contexts, at least those that hold total_tokens.
        chunk_rows: rows of a chunk.
    """

    target: str
    context_size: int
    n_rows: int
    chunk_rows: int


def planned_rows(params: Params, sources: Sources, n_contexts: int | None = None) -> PlannedRows:
    """The rows of the store of `params`.

    Args:
        params: all parameters.
        sources: of its models.
        n_contexts: contexts that the text gives, where that is known; None: as few as can hold the tokens.
    """
    from pipeline.activations.schema import chunk_rows

    acts = params.activations
    flat = acts.target == "activations-1d"
    inner = None if flat else acts.context_size
    least = -(-acts.total_tokens // (acts.context_size - acts.ignore_positions))
    rows = acts.total_tokens if flat else (least if n_contexts is None else n_contexts)
    return PlannedRows(
        acts.target, acts.context_size, rows, chunk_rows(sources.models[MAIN].d_model, acts.storage_dtype, inner)
    )
