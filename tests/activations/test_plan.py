"""The order of contexts and rows follows from tokens and seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.activations import plan as plan_module
from pipeline.activations.plan import ContextTokens, plan_rows
from pipeline.errors import DataError
from tests.activations.cases import settings


def _tokens(tokens):
    return ContextTokens(tokens.train, tokens.ignore_token_ids)


def test_every_kept_token_of_the_used_contexts_has_one_row(tokens, small_blocks):
    contexts = _tokens(tokens)
    plan = plan_rows(contexts, settings(), chunk_rows=256)
    assert plan.n_rows == 5000
    assert len(np.unique(plan.contexts)) == len(plan.contexts)
    np.testing.assert_array_equal(np.diff(plan.offsets), (tokens.train.read()[plan.contexts] != 0).sum(axis=1))
    assert plan.offsets[-2] < 5000 <= plan.offsets[-1]
    rows = [plan.block(b)[0] + plan.permutation(b).numpy() for b in range(plan.n_blocks)]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(5000))
    assert not np.array_equal(rows[0], np.arange(1024))
    position = 2000
    assert plan.store_row(position) == 1024 + int(np.flatnonzero(rows[1] == position)[0])


@pytest.mark.parametrize("target", ["activations-1d", "activations-2d"])
def test_batches_of_a_block_cover_it_and_no_more(tokens, small_blocks, target):
    plan = plan_rows(_tokens(tokens), settings(target=target), chunk_rows=16)
    seen = set()
    for block in range(plan.n_blocks):
        start, stop = plan.block(block)
        batches = plan.batches(block)
        seen.update(batches)
        first, last = plan.batch(batches[0]), plan.batch(batches[-1])
        assert plan.offsets[first.start] <= start < plan.offsets[first.stop]
        assert plan.offsets[last.start] < stop <= plan.offsets[last.stop]
    assert seen == set(range(plan.n_batches))


def test_order_depends_on_the_seed_and_not_on_how_much_is_taken(tokens, small_blocks):
    contexts = _tokens(tokens)
    plan, longer = (plan_rows(contexts, settings(total_tokens=n), 256) for n in (3000, 5000))
    np.testing.assert_array_equal(plan.contexts[:-1], longer.contexts[: len(plan.contexts) - 1])
    other = plan_rows(contexts, settings(perm_seed=1), 256)
    assert not np.array_equal(other.contexts[:50], longer.contexts[:50])
    assert plan_rows(contexts, settings(target="activations-2d"), 16).contexts.tolist() == longer.contexts.tolist()


def test_too_little_text_says_how_much_there_is(tokens):
    with pytest.raises(DataError, match=r"too little text: activations.total_tokens = 9,999,999, .* holds 5,\d\d\d tokens"):
        plan_rows(_tokens(tokens), settings(total_tokens=9_999_999), 256)


def test_a_large_split_is_held_in_a_file_without_a_name(tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "IN_MEMORY_BYTES", 0)
    contexts = ContextTokens(tokens.train, (0,), scratch=str(tmp_path))
    np.testing.assert_array_equal(contexts.take(np.array([7, 3])), tokens.train.read()[[7, 3]])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["activations-1d", "activations-2d"])
@pytest.mark.parametrize("rows", [(0, 5000), (0, 3072), (0, 3000), (0, 90), (1500, 2300)])
def test_contexts_within_rows_have_no_row_outside(tokens, small_blocks, target, rows):
    plan = plan_rows(_tokens(tokens), settings(target=target), chunk_rows=16)
    rows = (min(rows[0], plan.n_rows - 1), min(rows[1], plan.n_rows))
    inside = set()
    for block in range(plan.n_blocks):
        start, stop = plan.block(block)
        order = plan.permutation(block)
        inside |= {start + (row - start if order is None else int(order[row - start])) for row in range(start, stop)
                   if rows[0] <= row < rows[1]}  # fmt: skip
    pairs = zip(plan.contexts, plan.offsets[:-1], plan.offsets[1:], strict=True)
    wanted = [int(context) for context, first, last in pairs if first < last and set(range(first, last)) <= inside]
    assert plan.contexts_within(rows).tolist() == wanted
    assert wanted or rows[1] - rows[0] < 1000
