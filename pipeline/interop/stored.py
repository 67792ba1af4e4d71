"""Export of what a run has left on the disk, checked on its activation store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from pipeline.analysis.feature_tables import FeatureStore
from pipeline.corpus.tokens import open_tokens
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.store import load_dictionary
from pipeline.errors import DataError, ParamsError
from pipeline.folding import StoredBatches
from pipeline.interop.exporting import Export, export_dictionaries
from pipeline.opening import open_activations

if TYPE_CHECKING:
    from pipeline.activations.interface import Activations
    from pipeline.params.schema import Params


def export_stored(
    params: Params,
    places: Sequence[Path],
    to: Path,
    format: str,
    *,
    activations: str | Path | None,
    n_tokens: int = 4096,
    features: Sequence[Path] | None = None,
    tokens: str | Path = "data/tokens.zarr",
) -> Export:
    """Export dictionaries from their directories.

    Args:
        params: what they were trained with, for what other formats say of that.
        places: directories.
        to: directory to write.
        format: name.
        activations: manifest of a store, or a store, with what they read; None: drawn activations.
        n_tokens: so many tokens are read of it.
        features: directories of their feature stores, to be written too; None: not.
        tokens: the token store, which says whether contexts start with BOS where the parameters leave that to the tokenizer.

    Raises:
        DataError: a dictionary, a feature store or the store is not there, or the store has not what a dictionary reads.
    """
    dictionaries = [load_dictionary(place) for place in places]
    inputs = store = None
    if activations is not None:
        store = open_activations(activations)
        inputs = [stored_rows(store, dictionary, n_tokens) for dictionary in dictionaries]
    about = {
        "model_name": params.model.model_name,
        "model_revision": params.model.revision,
        "dataset_path": params.dataset.dataset_name_or_path,
        "context_size": params.activations.context_size,
        "prepend_bos": _starts_with_bos(params, store, tokens),
    }
    shown = None if features is None else [FeatureStore(place) for place in features]
    return export_dictionaries(dictionaries, to, format, activations=inputs, about=about, features=shown)


def _starts_with_bos(params: Params, store: Activations | None, tokens: str | Path) -> bool | None:
    """Whether the contexts of the run start with the BOS token: as stated, else what the token store says that `store` was made
    from; None: that is not at hand."""
    if isinstance(params.model.prepend_bos, bool):
        return params.model.prepend_bos
    try:
        found = open_tokens(tokens)
    except DataError:
        return None
    return found.prepend_bos if store is not None and store.made_from()["tokens"] == found.digest else None


def feature_places(params: Params, places: Sequence[Path], given: Sequence[str]) -> list[Path]:
    """The directories of feature stores that are named, one for each dictionary, else where analyze writes those of this run.

    Raises:
        ParamsError: more or fewer are named.
    """
    if given and len(given) != len(places):
        raise ParamsError(f"--features: {len(given)} feature stores for {len(places)} dictionaries; name one for each")
    return [Path(each) for each in given] or [Path("data/features") / (place.name if params.sweep else "") for place in places]


def stored_rows(store: Activations, dictionary: Dictionary, n_tokens: int) -> Tensor:
    """The last rows of a store, which are kept from training, as a dictionary takes them.

    Raises:
        DataError: the store has not what the dictionary reads.
    """
    missing = [hook for hook in dictionary.hooks_in if hook not in store.hook_points]
    if missing:
        raise DataError(
            f"export: the activation store has no {', '.join(missing)}, which the dictionary reads; give one that has by "
            "--activations, or --drawn"
        )
    n_rows = min(store.n_rows, max(1, n_tokens * store.n_rows // store.n_tokens))  # of the end, which is kept from training
    batches = StoredBatches.of(store, dictionary, {}, (store.n_rows - n_rows, store.n_rows), n_rows)
    x, mask = next(iter(batches))
    return x if mask is None or dictionary.reads_sequences else x[mask]
