"""Bytes on the disk: token store, activation store, checkpoints and dictionaries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.hook_keys import MAIN, by_model, join_key

if TYPE_CHECKING:
    from pipeline.planning.run import Run

TOKEN_BYTES = 14  # of the token store for each token, its text included: 13.9 on the embedded default
STATE_COPIES = 3  # a checkpoint: weights and two moments
CHECKPOINTS = 2  # that are kept while a training runs
OUTPUTS = 4  # initial, trained and inference dictionary, and the end kept in data/checkpoints


def token_store_bytes(run: Run) -> int:
    """data/tokens.zarr, about."""
    return TOKEN_BYTES * run.context_size * (run.train_contexts + run.held_out_contexts)


def store_bytes(run: Run) -> int:
    """The activation stores of all models, to the byte where rows are tokens; 0 of live activations and of a stated store."""
    from pipeline.activations.schema import hook_layouts, row_layouts

    acts, rows = run.params.activations, run.rows
    if run.live or acts.path is not None:
        return 0
    inner = None if acts.target == "activations-1d" else acts.context_size
    hooks = by_model(run.params.hook_points)
    total = 0
    for alias in dict.fromkeys((MAIN, *hooks)):
        layouts = row_layouts(rows.n_rows, inner, rows.chunk_rows)
        for hook in hooks.get(alias, ()):
            width = run.sources.widths[join_key(alias, hook)]
            layouts += hook_layouts(hook, rows.n_rows, width, inner, rows.chunk_rows, acts.storage_dtype)
        total += sum(layout.n_chunks * layout.chunk_bytes for layout in layouts)
    return total


def dictionary_bytes(run: Run) -> int:
    """Dictionaries, checkpoints and snapshots of all members."""
    snapshots = max(own.trainer.n_checkpoints for own in run.params.members.values())
    return run.weight_bytes * (OUTPUTS + STATE_COPIES * CHECKPOINTS + snapshots)
