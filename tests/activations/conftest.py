"""Fixtures: a token store, and small blocks so that small stores have several blocks and chunks."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.activations import plan, schema
from pipeline.corpus.tokens import TokenStore
from tests.activations.cases import make_tokens


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return make_tokens(tmp_path_factory.mktemp("tokens") / "tokens.zarr")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 1,024 rows; chunks of 256 rows of width 8 in bfloat16."""
    monkeypatch.setattr(schema, "BLOCK_ROWS", 1024)
    monkeypatch.setattr(plan, "BLOCK_ROWS", 1024)
    monkeypatch.setattr(schema, "CHUNK_BYTES", 256 * 8 * 2)


@pytest.fixture
def place(tmp_path: Path, small_blocks: None) -> Path:
    """A store root."""
    return tmp_path / "store"
