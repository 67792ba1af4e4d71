"""Shuffled batches: complete, repeatable from any position, mixed, valid after they are handed out."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.activations.batches import _ahead
from pipeline.activations.order import MIN_CHUNKS, BatchPlan
from pipeline.errors import DataError
from tests.activations.cases import HOOK, OTHER, FakeModel, make_store

BATCH = 96


@pytest.fixture
def store(tokens, place, monkeypatch):
    """5,000 rows in 20 chunks; a window is 4 chunks unless a test wants more."""
    monkeypatch.setattr("pipeline.activations.order.MIN_CHUNKS", 4)
    return make_store(place, tokens, hook_points=(HOOK, OTHER))


@given(
    rows=st.tuples(st.integers(0, 900), st.integers(1, 900)),
    chunk_rows=st.sampled_from([1, 4, 16, 64]),
    batch_size=st.integers(1, 200),
    buffer_rows=st.sampled_from([1, 200, 4000]),
    drop_last=st.booleans(),
    seed=st.integers(0, 3),
)
def test_an_epoch_of_the_plan_holds_every_row_once(rows, chunk_rows, batch_size, buffer_rows, drop_last, seed):
    plan = BatchPlan(seed, (rows[0], sum(rows)), chunk_rows, batch_size, buffer_rows, drop_last)
    for epoch in range(2):
        windows = plan.windows(epoch)
        assert sorted(int(chunk) for chunks in windows for chunk in chunks) == list(
            range(plan.first_chunk, plan.first_chunk + plan.n_chunks)
        )
        sizes = plan.window_sizes(epoch)
        assert sizes == [sum(b - a for a, b in map(plan.segment, chunks.tolist())) for chunks in windows]
        assert sum(sizes) == plan.n_rows
        assert max(sizes) <= plan.window_rows
        taken = [0] * len(windows)
        for index in range(epoch * plan.batches_per_epoch, (epoch + 1) * plan.batches_per_epoch):
            pieces = plan.pieces(index)
            for piece in pieces:
                assert (piece.epoch, piece.start) == (epoch, taken[piece.window])
                taken[piece.window] = piece.stop
            size = sum(piece.stop - piece.start for piece in pieces)
            assert size == batch_size or not drop_last
        assert sum(taken) == plan.n_rows - (plan.n_rows % batch_size if drop_last else 0)


def test_windows_hold_at_least_sixteen_chunks_and_are_even():
    plan = BatchPlan(0, (0, 100 * 64), 64, 32, 1)
    assert [len(chunks) for chunks in plan.windows(0)] == [17, 17, 17, 17, 16, 16]
    assert min(len(chunks) for chunks in plan.windows(0)) >= MIN_CHUNKS
    assert BatchPlan(0, (0, 100 * 64), 64, 32, 2**20).n_windows == 1


@pytest.mark.parametrize("prefetch", [True, False])
@pytest.mark.parametrize("buffer_rows", [1, 2**20], ids=["windows", "one window"])
def test_batches_are_the_stores_rows(store, prefetch, buffer_rows):
    whole = {name: store.read(name, 0, store.n_rows) for name in store.hook_points}
    meta = store.read_rows_meta(0, store.n_rows)
    for rows in ((0, 5000), (0, 4864), (300, 3333)):
        batches = list(store.batches(BATCH, epochs=2, rows=rows, buffer_rows=buffer_rows, prefetch=prefetch, drop_last=False))
        per_epoch = store.batches_per_epoch(BATCH, rows, drop_last=False)
        assert [batch.index for batch in batches] == list(range(2 * per_epoch))
        assert [batch.epoch for batch in batches] == [0] * per_epoch + [1] * per_epoch
        for epoch in range(2):
            seen = torch.cat([batch.rows for batch in batches if batch.epoch == epoch])
            assert torch.equal(seen.sort().values, torch.arange(*rows))
        # All are still valid after the last was made, and none shares a row with another.
        for batch in batches:
            for name in store.hook_points:
                assert torch.equal(batch.activations[name], whole[name][batch.rows])
        for batch in batches[::20]:
            for name in ("tokens", "positions", "context_ids", "mask"):
                assert torch.equal(getattr(batch, name), getattr(meta, name)[batch.rows])
        assert not torch.equal(batches[0].rows, batches[per_epoch].rows)


def test_two_dimensional_batches_keep_contexts(tokens, place):
    store = make_store(place, tokens, target="activations-2d")
    for batch in store.batches(10, seed=3, epochs=1):
        assert batch.activations[HOOK].shape == (10, 16, 8)
        assert torch.equal(batch.mask, batch.tokens != 0)
        wanted = FakeModel().value(batch.tokens, batch.positions, HOOK).bfloat16()
        assert torch.equal(batch.activations[HOOK], wanted)


@pytest.mark.parametrize("buffer_rows", [1, 2**20], ids=["windows", "one window"])
@pytest.mark.parametrize("batch_size", [96, 640])
def test_starting_anywhere_gives_the_batches_of_an_unbroken_run(store, buffer_rows, batch_size):
    def batches(start, stop):
        made = store.batches(batch_size, seed=5, start=start, buffer_rows=buffer_rows, rows=(0, 4864))
        found = [next(made) for _ in range(stop - start)]
        made.close()
        return found

    unbroken = batches(0, 120)
    assert unbroken[-1].epoch > 1
    for start in (1, 7, 49, 51, 103):
        for ours, theirs in zip(batches(start, min(start + 8, 120)), unbroken[start:], strict=False):
            assert (ours.index, ours.epoch) == (theirs.index, theirs.epoch)
            assert torch.equal(ours.rows, theirs.rows)
            assert torch.equal(ours.activations[HOOK], theirs.activations[HOOK])


def test_the_seed_and_nothing_else_makes_the_order(store):
    first = [batch.rows for batch in store.batches(BATCH, seed=1, epochs=1, buffer_rows=1)]
    again = [b.rows for b in store.batches(BATCH, seed=1, epochs=1, buffer_rows=1, hook_points=[OTHER], prefetch=False)]
    other = [batch.rows for batch in store.batches(BATCH, seed=2, epochs=1, buffer_rows=1)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_memory_is_used_again_only_when_nothing_refers_to_it(store, dtype):
    def memory(x):
        return x.untyped_storage().data_ptr()

    batches = store.batches(BATCH, buffer_rows=1, dtype=dtype)
    held = next(batches)
    copy, view, held_memory = held.activations[HOOK].clone(), held.activations[HOOK][3:5], memory(held.activations[HOOK])
    del held
    later = [memory(next(batches).activations[HOOK]) for _ in range(200)]  # four epochs of four windows
    assert len(set(later)) <= 14  # two hook points: windows held, being read and made ahead, or batches made ahead
    assert held_memory not in later[20:]
    assert torch.equal(view, copy[3:5])
    batches.close()


def test_without_preadv_the_batches_are_the_same(store, monkeypatch):
    first = list(store.batches(BATCH, seed=2, epochs=1, buffer_rows=1))
    monkeypatch.setattr("pipeline.activations.vectored._preadv", lambda: None)
    for ours, theirs in zip(store.batches(BATCH, seed=2, epochs=1, buffer_rows=1), first, strict=True):
        assert torch.equal(ours.rows, theirs.rows)
        for name in store.hook_points:
            assert torch.equal(ours.activations[name], theirs.activations[name])


def test_batches_are_delivered_in_the_dtype_asked_for(store):
    batch = next(store.batches(BATCH, dtype=torch.float32, prefetch=False))
    assert batch.activations[HOOK].dtype == torch.float32
    assert torch.equal(batch.activations[HOOK], store.read(HOOK, 0, 5000)[batch.rows].float())


def _readers() -> list[str]:
    """The threads that read ahead; others, of tests before this one, may end at any time."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("activation ")]


def test_closing_ends_the_threads_and_an_error_reaches_the_consumer(store):
    assert _readers() == []
    batches = store.batches(BATCH, buffer_rows=1)
    next(batches)
    assert "activation batches" in _readers()
    batches.close()
    assert _readers() == []
    (store.path / HOOK / "c.7.0").unlink()
    with pytest.raises(DataError, match=rf"array '{HOOK}': chunk 7 is missing"):
        list(store.batches(BATCH, epochs=1, buffer_rows=1))
    assert _readers() == []


def test_a_batch_larger_than_the_rows_is_refused(store):
    with pytest.raises(DataError, match=r"a batch of 6,000 rows is more than the 5,000 rows to read"):
        store.batches(6000)


def _same_context_share(context_batches) -> float:
    same = pairs = 0.0
    for contexts in context_batches:
        counts = torch.bincount(contexts.long())
        same += float((counts * (counts - 1)).sum())
        pairs += len(contexts) * (len(contexts) - 1)
    return same / pairs


@pytest.mark.parametrize("buffer_rows", [2500, 2**20], ids=["two windows", "one window"])
def test_rows_of_a_context_meet_about_as_rarely_as_in_a_uniform_shuffle(store, buffer_rows):
    """The share of pairs of rows from one context in a batch: within 2x of that of a uniform shuffle."""
    ours = _same_context_share(b.context_ids for b in store.batches(512, epochs=4, buffer_rows=buffer_rows))
    contexts = store.read_rows_meta(0, store.n_rows).context_ids
    uniform = _same_context_share([contexts])  # of all pairs of rows, which is what a uniform shuffle gives on average
    assert uniform / 2 < ours < uniform * 2
    # The row order of the store itself is mixed, but only within blocks: reading in order would not do.
    in_order = _same_context_share(contexts.split(512))
    assert in_order > ours


def test_an_exception_while_waiting_gives_up_a_window_after_its_present_chunk(store, monkeypatch):
    """A live window may take minutes; Ctrl-C does not wait for it."""
    array, handled, chunks = type(store.array(HOOK)), threading.Event(), []
    read = array.scatter_chunk

    class Asked(Exception):
        pass

    def handler(number, frame):
        handled.set()
        raise Asked

    def slow(self, out, places, chunk, start, stop):
        read(self, out, places, chunk, start, stop)
        chunks.append(chunk)
        if not handled.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert handled.wait(30)
        time.sleep(0.5)  # the main thread closes the batches

    monkeypatch.setattr(array, "scatter_chunk", slow)
    threads = set(threading.enumerate())
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(Asked):
            next(store.batches(BATCH, hook_points=[HOOK]))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(chunks) == 1
    assert set(threading.enumerate()) <= threads


def test_batches_that_are_dropped_in_their_own_thread_end():
    """As the collector of cycles may do after an exception: the thread cannot wait for itself."""
    held, dropped, stopped = [], threading.Event(), threading.Event()

    def made():
        yield "first"
        assert dropped.wait(30)
        held.clear()
        yield "second"

    others = set(threading.enumerate())
    held.append(_ahead(made(), stopped))
    assert next(held[0]) == "first"
    (thread,) = set(threading.enumerate()) - others
    dropped.set()
    thread.join(30)
    assert held == []
    assert stopped.is_set()
    assert not thread.is_alive()
