"""One feature store told from another."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pipeline.analysis.feature_columns import CONTEXTS, FEATURES

if TYPE_CHECKING:
    from pipeline.analysis.feature_tables import FeatureStore


def store_digest(store: FeatureStore) -> str:
    """sha256 over the contents of the feature store's two files."""
    digest = hashlib.sha256()
    for name in (FEATURES, CONTEXTS):
        with open(store.folder / name, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
