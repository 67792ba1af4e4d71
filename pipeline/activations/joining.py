"""Stores of several models, joined row by row.

The order of rows depends on data/tokens.zarr and the settings alone, not on the model, so that row i of every store of one
token store is the same token. Joining costs no read: the content digests of the arrays that say what a row is must be equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.activations.schema import REGENERATE, ROW_ARRAYS
from pipeline.errors import DataError

if TYPE_CHECKING:
    from pipeline.activations.reader import ActivationStore


def join_(store: ActivationStore, others: Mapping[str, ActivationStore]) -> ActivationStore:
    """Add the hook points of other models' stores to an open store, as `alias:<hook point>`.

    Args:
        store: of the main model; it is changed.
        others: {alias: open store}.

    Returns: the store.

    Raises:
        DataError: a store has other rows (or cuts them into other chunks); names the first difference.
    """
    for alias, other in others.items():
        _check_rows(store, alias, other)
        store.attach(alias, other)
    return store


def _check_rows(store: ActivationStore, alias: str, other: ActivationStore) -> None:
    wanted = _facts(store)
    for name, found in _facts(other).items():
        if found != wanted[name]:
            raise DataError(
                f"{other.path}: the activation store of model '{alias}' does not have the rows of {store.path}: {name} is "
                f"{found!r}, not {wanted[name]!r}; {REGENERATE}"
            )


def _facts(store: ActivationStore) -> dict[str, object]:
    """What stores with the same rows, cut into the same chunks, have in common; the last ones are exact."""
    return {
        "tokens_digest": store.config.get("tokens_digest"),
        "target": store.target,
        "context_size": store.context_size,
        "n_rows": store.n_rows,
        "chunk_rows (which follows from the model's width)": store.chunk_rows,
        "storage_dtype": store.storage_dtype,
        **{f"content of '{name}'": store.array(name).digest for name in ROW_ARRAYS},
    }
