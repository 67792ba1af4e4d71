"""Generation leaves the first positions of contexts out of rows, and masks them where contexts are kept whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.activations.fingerprint import check_made_for
from pipeline.corpus.tokens import TokenStore, open_tokens
from pipeline.corpus.tokens_writer import write_tokens
from pipeline.errors import DataError
from tests.activations.cases import HOOK, FakeModel, make_store, packed, settings

N = 3


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """A token store like `tokens`, without the first N positions."""
    path = tmp_path_factory.mktemp("few") / "tokens.zarr"
    write_tokens(path, train=packed(400, 16), eval=packed(4, 16, 1), ignore_token_ids=(0,), ignore_positions=N)
    return open_tokens(path)


def test_there_is_no_row_of_an_ignored_position(few: TokenStore, place: Path) -> None:
    store = make_store(place, few, total_tokens=4000, ignore_positions=N, storage_dtype="float32")
    meta = store.read_rows_meta(0, store.n_rows)
    assert store.n_rows == 4000
    train = torch.from_numpy(few.train.read())
    assert torch.equal(train[meta.context_ids.long(), meta.positions.long()], meta.tokens)
    assert int(meta.positions.min()) == N
    assert (meta.tokens != 0).all()
    # Every other token of the contexts that were read is there, but for the rest of the last one.
    there = meta.context_ids.long().bincount(minlength=len(train))
    lacking = ((train[:, N:] != 0).sum(1) - there)[there > 0]
    assert (lacking >= 0).all()
    assert int((lacking > 0).sum()) <= 1
    assert torch.equal(store.read(HOOK, 0, 4000), FakeModel().value(meta.tokens, meta.positions, HOOK))


def test_contexts_keep_the_place_of_an_ignored_position(few: TokenStore, place: Path) -> None:
    store = make_store(place, few, target="activations-2d", total_tokens=4000, ignore_positions=N, storage_dtype="float32")
    meta = store.read_rows_meta(0, store.n_rows)
    assert torch.equal(torch.from_numpy(few.train.read())[meta.context_ids.long()], meta.tokens)
    wanted = meta.tokens != 0
    wanted[:, :N] = False
    assert torch.equal(meta.mask, wanted)
    assert meta.mask.sum() - 16 < 4000 <= meta.mask.sum()
    assert torch.equal(store.read(HOOK, 0, store.n_rows), FakeModel().value(meta.tokens, meta.positions, HOOK))
    for batch in store.batches(8, epochs=1):
        assert not batch.mask[:, :N].any()


def test_tokens_made_with_other_positions_are_refused(tokens: TokenStore, few: TokenStore, place: Path) -> None:
    for store, stated, message in ((tokens, N, "0 positions ignored"), (few, 0, "3 positions ignored")):
        with pytest.raises(
            DataError,
            match=rf"data/tokens.zarr: made for other parameters: {message}, activations.ignore_positions = {stated}; "
            "run `dvc repro tokenize`",
        ):
            make_store(place, store, ignore_positions=stated)
    assert not place.exists()


def test_a_store_made_with_other_positions_is_refused(tokens: TokenStore, few: TokenStore, place: Path) -> None:
    with_all, without = make_store(place, tokens), make_store(place, few, total_tokens=4000, ignore_positions=N)
    assert with_all.fingerprint != without.fingerprint
    assert "ignore_positions" not in with_all.config  # as in a store of an earlier version, which keeps its name
    check_made_for(with_all.path, with_all.config, settings())
    check_made_for(without.path, without.config, settings(total_tokens=4000, ignore_positions=N))
    with pytest.raises(
        DataError, match=r"other parameters \(activations.ignore_positions 0, not 2\); run `dvc repro -s -f gen"
    ):
        check_made_for(with_all.path, with_all.config, settings(ignore_positions=2))
    with pytest.raises(DataError, match=r"\(activations.ignore_positions 3, not 0\)"):
        check_made_for(without.path, without.config, settings(total_tokens=4000))
