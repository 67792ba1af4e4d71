"""Per-layer transcoder (SPEC 1.1): the class of sae.py with another hook point to write than to read."""

from __future__ import annotations

from pipeline.dictionaries.registry import register
from pipeline.dictionaries.sae import SparseAutoencoder

register("transcoder")(SparseAutoencoder)
