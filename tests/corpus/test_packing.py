"""Packing against a naive loop, and the token store read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.document import Document, held_out
from pipeline.corpus.packing import PackedSplit, Packer
from pipeline.corpus.tokens import open_tokens
from pipeline.corpus.tokens_writer import write_tokens
from pipeline.errors import DataError
from tests.messages import saying


def naive(lengths: list[int], context: int, bos: int | None, eos: int | None) -> list[list[tuple[int, int, int, int]]]:
    stream = []
    for number, length in enumerate(lengths):
        stream += [(100 * number + i, number, 2 * i, 2 * i + 1) for i in range(length)]
        if eos is not None:
            stream.append((eos, number, -1, -1))
    body = context - (bos is not None)
    contexts = []
    for begin in range(0, len(stream) - body + 1, body):
        part = stream[begin : begin + body]
        contexts.append(([(bos, part[0][1], -1, -1)] if bos is not None else []) + part)
    return contexts


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=0, max_size=8),
    context=st.integers(2, 7),
    bos=st.sampled_from([None, 7]),
    eos=st.sampled_from([None, 9]),
)
def test_packer_is_the_naive_loop(lengths: list[int], context: int, bos: int | None, eos: int | None) -> None:
    packer = Packer(context, bos, eos)
    got: list[list[tuple[int, ...]]] = []
    for number, length in enumerate(lengths):
        i = np.arange(length, dtype=np.int32)
        packer.add(number, 100 * number + i, 2 * i, 2 * i + 1)
        for packed in packer.contexts():
            got += [[tuple(int(v) for v in row[:, p]) for p in range(context)] for row in packed.rows().transpose(1, 0, 2)]
    assert got == naive(lengths, context, bos, eos)


def naive_with_own_bos(lengths: list[int], context: int, bos: int, counted: bool) -> list[list[tuple[int, ...]]]:
    """Documents that begin with `bos` themselves: token by token, a context that would begin with another gets one."""
    contexts: list[list[tuple[int, ...]]] = [[]]
    for number, length in enumerate(lengths):
        for i in range(length):
            token = (bos if i == 0 else 100 * number + i, number, 2 * i, 2 * i + 1, *([i % 2] if counted else []))
            if not contexts[-1] and token[0] != bos:
                contexts[-1].append((bos, number, -1, -1, *([1] if counted else [])))
            contexts[-1].append(token)
            if len(contexts[-1]) == context:
                contexts.append([])
    return contexts[:-1]


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=0, max_size=8), context=st.integers(2, 7), counted=st.booleans())
def test_a_context_gets_no_second_bos(lengths: list[int], context: int, counted: bool) -> None:
    packer = Packer(context, 7, None, own_bos=True)
    got: list[list[tuple[int, ...]]] = []
    for number, length in enumerate(lengths):
        i = np.arange(length, dtype=np.int32)
        ids = np.where(i == 0, 7, 100 * number + i).astype(np.int32)
        packer.add(number, ids, 2 * i, 2 * i + 1, i % 2 if counted else None)
        for packed in packer.contexts():
            assert (packed.counted is not None) == counted
            got += [[tuple(int(v) for v in row[:, p]) for p in range(context)] for row in packed.rows().transpose(1, 0, 2)]
    assert got == naive_with_own_bos(lengths, context, 7, counted)


def split(tokens: np.ndarray) -> PackedSplit:
    starts = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1))
    return PackedSplit(tokens.astype(np.int32), np.zeros_like(tokens, dtype=np.int32), starts, starts + 1)


def test_round_trip_and_trace(tmp_path: Path) -> None:
    tokens = np.arange(12).reshape(3, 4)
    path = tmp_path / "tokens.zarr"
    digest = write_tokens(
        path,
        train=split(tokens),
        eval=split(tokens[:1]),
        ignore_token_ids=(3, 5),
        documents=[Document("d", "abcd", {"file": "f"})],
    )
    store = open_tokens(path)
    assert store.digest == digest
    assert store.train.n_contexts == 3
    assert store.eval.n_contexts == 1
    np.testing.assert_array_equal(store.train.read(1, 3), tokens[1:3])
    np.testing.assert_array_equal(store.mask(np.array([2, 3, 4, 5])), [True, False, True, False])
    traced = store.trace("train", 1, 2)
    assert (traced.document, traced.text, traced.origin) == ("d", "c", {"file": "f"})
    again = write_tokens(
        tmp_path / "b",
        train=split(tokens),
        eval=split(tokens[:1]),
        ignore_token_ids=(3, 5),
        documents=[Document("d", "abcd", {"file": "f"})],
    )
    assert again == digest
    other = write_tokens(tmp_path / "c", train=split(tokens + 1), eval=split(tokens[:1]))
    assert other != digest


def test_missing_and_damaged_stores(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=saying("none:", "missing", "`dvc repro tokenize`")):
        open_tokens(tmp_path / "none")
    path = tmp_path / "tokens.zarr"
    write_tokens(path, train=split(np.ones((2, 2))), eval=split(np.ones((2, 2))))
    (path / "documents" / "eval.jsonl").unlink()
    with pytest.raises(DataError, match=saying("eval.jsonl:", "missing", "`dvc repro tokenize`")):
        open_tokens(path)
    (path / "zarr.json").write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        open_tokens(path)


def test_split_is_by_key_alone() -> None:
    held = [held_out(f"k{i}", 0.2, 0) for i in range(2000)]
    assert 0.15 < sum(held) / 2000 < 0.25
    assert held != [held_out(f"k{i}", 0.2, 1) for i in range(2000)]
