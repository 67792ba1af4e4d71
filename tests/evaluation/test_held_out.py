from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.errors import DataError
from pipeline.evaluation.split_tokens import whole_documents
from pipeline.extent import Extent
from tests.evaluation.tiny import CONTEXT, held_out, tiny_tokens
from tests.messages import saying


def test_every_context_once_and_again():
    tokens = tiny_tokens(9)
    chosen = held_out(tokens, batch_contexts=4)
    for _ in range(2):
        batches = list(chosen)
        assert [len(batch.tokens) for batch in batches] == [4, 4, 1]
        assert torch.equal(torch.cat([batch.tokens for batch in batches]), torch.from_numpy(tokens.astype(np.int64)))
        assert torch.equal(torch.cat([batch.mask for batch in batches]), torch.from_numpy(tokens != 0))
    assert batches[1].label == "held-out contexts 4 to 7"
    assert (chosen.n_contexts, chosen.n_tokens) == (9, 9 * CONTEXT)


def test_fewer_tokens_are_spread_over_the_split():
    tokens = tiny_tokens(9)
    chosen = held_out(tokens, batch_contexts=2, n_tokens=3 * CONTEXT - 5)
    assert chosen.contexts.tolist() == [0, 3, 6]
    assert torch.equal(torch.cat([b.tokens for b in chosen]), torch.from_numpy(tokens[[0, 3, 6]].astype(np.int64)))


def test_too_few_are_refused():
    with pytest.raises(DataError, match=saying("evaluation.tokens", 109, 108, "dataset.eval_fraction")):
        held_out(tiny_tokens(9), n_tokens=109)
    with pytest.raises(DataError, match=saying("no context", "dataset.eval_fraction")):
        held_out(tiny_tokens(0))


def test_it_goes_on_after_some_batches_and_numbers_its_contexts():
    tokens = tiny_tokens(9)
    chosen = held_out(tokens, batch_contexts=2, n_tokens=5 * CONTEXT)
    whole, rest = list(chosen), [chosen.batch(number) for number in range(2, chosen.n_batches)]
    assert torch.cat([batch.contexts for batch in whole]).tolist() == chosen.contexts.tolist() == [0, 1, 3, 5, 7]
    assert [batch.contexts.tolist() for batch in rest] == [[7]]
    assert torch.equal(rest[0].tokens, whole[2].tokens)
    assert torch.equal(whole[1].documents, torch.from_numpy(chosen._split.whole_documents()[[3, 5]].astype(np.int64)))


def test_pieces_of_a_file_have_the_number_of_its_first_piece():
    wholes = whole_documents(np.array([-1, 4, 0, -1, 0, 4, 0, 7], dtype=np.int32))
    assert wholes.tolist() == [0, 1, 2, 3, 2, 1, 2, 7]
    chosen = held_out(tiny_tokens(9))
    assert chosen.extent({0, 1, 3}) == chosen.whole_extent() == Extent(3, 1)
    assert held_out(tiny_tokens(9), n_tokens=CONTEXT).whole_extent() == Extent(1, 1)
    assert held_out(tiny_tokens(9), n_tokens=2 * CONTEXT).whole_extent() == Extent(2, 1)  # contexts 0 and 4


def test_contexts_far_apart_are_not_read_with_all_that_lies_between(monkeypatch):
    monkeypatch.setattr("pipeline.corpus.contexts.CHUNK_CONTEXTS", 4)
    tokens = tiny_tokens(40)
    chosen = held_out(tokens, batch_contexts=9, n_tokens=9 * CONTEXT)
    spans, read = [], chosen._split.read

    def counting(start, stop, field):
        spans.append(stop - start)
        return read(start, stop, field)

    monkeypatch.setattr(chosen._split, "read", counting)
    (batch,) = chosen
    assert max(spans) <= 4
    assert batch.contexts.tolist() == [0, 4, 8, 13, 17, 22, 26, 31, 35]
    assert torch.equal(batch.tokens, torch.from_numpy(tokens[batch.contexts].astype(np.int64)))


def test_the_digest_is_of_tokens_and_documents_and_not_of_batches():
    tokens = tiny_tokens(9)
    wanted = held_out(tokens, batch_contexts=4).digest
    assert {held_out(tokens.copy(), batch_contexts=n).digest for n in (1, 3, 9)} == {wanted}
    assert held_out(tokens, n_tokens=5 * CONTEXT).digest != wanted
    other = tokens.copy()
    other[3, 2] += 1
    assert held_out(other).digest != wanted
    without_mask = held_out(tokens)
    without_mask._mask_of = lambda _, ids: ids >= 0
    assert without_mask.digest != wanted
    pieces = held_out(tokens)
    pieces._wholes = None
    assert pieces.digest != wanted
