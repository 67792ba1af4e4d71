"""activations.ignore_positions: the first positions of each context count nowhere and are masked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus.packing import kept_tokens
from pipeline.corpus.tokenization import TokenizeSettings, tokenize_corpus
from pipeline.corpus.tokens import open_tokens
from tests.corpus.test_tokenization import corpus, info

CONTEXT, TOTAL = 8, 100


def naive_kept(tokens: np.ndarray, ignored: tuple[int, ...], positions: int) -> np.ndarray:
    kept = np.empty(tokens.shape, dtype=bool)
    for row, at in np.ndindex(*tokens.shape):
        kept[row, at] = at >= positions and tokens[row, at] not in ignored
    return kept


@pytest.mark.parametrize("positions", [0, 1, 3, 7])
@pytest.mark.parametrize("bos", [False, True])
def test_ignored_positions_are_not_counted_in_the_total_and_masked_in_both_splits(
    tmp_path: Path, bos: bool, positions: int
) -> None:
    figures = tokenize_corpus(
        corpus(240), info(), TokenizeSettings(CONTEXT, TOTAL, bos, None, positions, 0.3, 0), tmp_path / "t"
    )
    store = open_tokens(tmp_path / "t")
    assert store.ignore_positions == positions
    for name, part in (("train", store.train), ("eval", store.eval)):
        tokens = part.read()
        kept = naive_kept(tokens, (0, 1), positions)
        assert np.array_equal(store.mask(tokens), kept)
        assert figures[f"{name}_tokens"] == kept.sum()
        assert kept.sum() > 0
        assert not bos or (tokens[:, 0] == 1).all()
    kept = naive_kept(store.train.read(), (0, 1), positions).sum(1)
    assert kept.sum() >= TOTAL > kept[:-1].sum()


def test_any_shape_of_whole_contexts() -> None:
    tokens = np.arange(24).reshape(2, 3, 4) % 5
    found = kept_tokens(tokens, (3, 1), 2)
    assert np.array_equal(found, naive_kept(tokens.reshape(6, 4), (1, 3), 2).reshape(2, 3, 4))
    assert np.array_equal(kept_tokens(tokens[0, 0], (), 1), [False, True, True, True])


def test_a_store_of_an_earlier_version_ignores_none_and_one_content_has_one_digest(tmp_path: Path) -> None:
    digests = {}
    for positions in (0, 2):
        settings = TokenizeSettings(CONTEXT, TOTAL, False, None, positions, 0.3, 0)
        digests[positions] = tokenize_corpus(corpus(120), info(), settings, tmp_path / f"t{positions}")["digest"]
    assert digests[0] != digests[2]
    import zarr

    assert "ignore_positions" not in zarr.open_group(str(tmp_path / "t0"), mode="r").attrs
    assert open_tokens(tmp_path / "t0").ignore_positions == 0
