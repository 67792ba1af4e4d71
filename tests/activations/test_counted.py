"""Tokens that their document does not count are run through the model and stand in no row; contexts mask them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.activations.plan import ContextTokens
from pipeline.corpus.tokens import TokenStore, open_tokens
from pipeline.corpus.tokens_writer import write_tokens
from pipeline.evaluation.split_tokens import SplitTokens
from tests.activations.cases import HOOK, FakeModel, make_store, packed

TOTAL = 2000


@pytest.fixture(scope="module")
def partly(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenStore, dict[str, np.ndarray]]:
    """A token store like `tokens` of which about half of the tokens count, and which they are."""
    path = tmp_path_factory.mktemp("partly") / "tokens.zarr"
    rng = np.random.default_rng(3)
    splits = {"train": packed(400, 16), "eval": packed(40, 16, 1)}
    counted = {name: rng.random(split.tokens.shape) < 0.5 for name, split in splits.items()}
    made = {name: dataclasses.replace(split, counted=counted[name].astype(np.int32)) for name, split in splits.items()}
    write_tokens(path, train=made["train"], eval=made["eval"], ignore_token_ids=(0,))
    store = open_tokens(path)
    return store, {name: own & (splits[name].tokens != 0) for name, own in counted.items()}


def test_rows_are_of_counted_tokens_alone(partly: tuple[TokenStore, dict[str, np.ndarray]], place: Path) -> None:
    tokens, kept = partly
    store = make_store(place, tokens, total_tokens=TOTAL, storage_dtype="float32")
    meta = store.read_rows_meta(0, store.n_rows)
    assert store.n_rows == TOTAL
    rows, positions = meta.context_ids.numpy().astype(int), meta.positions.numpy().astype(int)
    assert kept["train"][rows, positions].all()
    assert len(set(zip(rows.tolist(), positions.tolist(), strict=True))) == TOTAL
    lacking = kept["train"].sum(1) - np.bincount(rows, minlength=400)
    assert (lacking >= 0).all()
    assert ((lacking > 0) & (lacking < kept["train"].sum(1))).sum() <= 1
    # The model has read whole contexts.
    assert torch.equal(store.read(HOOK, 0, TOTAL), FakeModel().value(meta.tokens, meta.positions, HOOK))


def test_contexts_mask_the_others(partly: tuple[TokenStore, dict[str, np.ndarray]], place: Path) -> None:
    tokens, kept = partly
    store = make_store(place, tokens, target="activations-2d", total_tokens=TOTAL, storage_dtype="float32")
    meta = store.read_rows_meta(0, store.n_rows)
    assert np.array_equal(meta.mask.numpy(), kept["train"][meta.context_ids.numpy().astype(int)])
    assert np.array_equal(meta.tokens.numpy(), tokens.train.read()[meta.context_ids.numpy().astype(int)])


def test_large_masks_lie_in_a_file(
    partly: tuple[TokenStore, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, kept = partly
    monkeypatch.setattr("pipeline.activations.plan.IN_MEMORY_BYTES", 10)
    contexts = ContextTokens(tokens.train, (0,), scratch=str(tmp_path))
    some = np.array([3, 17, 399])
    assert np.array_equal(contexts.mask(some), kept["train"][some])
    assert np.array_equal(contexts.kept_counts, kept["train"].sum(1))


@pytest.mark.parametrize("split", ["train", "eval"])
def test_evaluation_and_analysis_mask_the_others(partly: tuple[TokenStore, dict[str, np.ndarray]], split: str) -> None:
    """Also where some contexts are read, spread over the split."""
    tokens, kept = partly
    part = getattr(tokens, split)
    for wanted in (None, 20 * 16):
        seen = 0
        for batch in SplitTokens(part, part.mask, wanted, 7):
            assert np.array_equal(batch.mask.numpy(), kept[split][batch.contexts.numpy()])
            seen += len(batch.contexts)
        assert seen == (part.n_contexts if wanted is None else 20)
