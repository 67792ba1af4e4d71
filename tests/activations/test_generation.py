"""Generation: right values in the right rows, resumable, repairable, extensible; its faults."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr

from pipeline.activations import writer
from pipeline.activations.fingerprint import GenerationSettings, fingerprint_config
from pipeline.activations.generation import generate_store, store_manifest
from pipeline.activations.reader import open_store
from pipeline.errors import DataError, NumericsError
from pipeline.files import locked
from pipeline.params.loader import load_params
from tests.activations.cases import HOOK, OTHER, FakeModel, contents, facts, make_store, make_tokens, settings
from tests.project import REPOSITORY


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("target", ["activations-1d", "activations-2d"])
def test_every_row_is_the_models_activation_of_its_token(tokens, place, target, dtype):
    store = make_store(place, tokens, hook_points=(HOOK, OTHER), target=target, storage_dtype=dtype)
    meta = store.read_rows_meta(0, store.n_rows)
    train = torch.from_numpy(tokens.train.read())
    if target == "activations-1d":
        assert store.n_rows == 5000
        assert torch.equal(train[meta.context_ids.long(), meta.positions.long()], meta.tokens)
        assert meta.mask.all()
        assert (meta.tokens != 0).all()
        pairs = meta.context_ids.long() * 16 + meta.positions
        assert len(pairs.unique()) == 5000
    else:
        assert store.shape(HOOK) == (store.n_rows, 16, 8)
        assert torch.equal(train[meta.context_ids.long()], meta.tokens)
        assert torch.equal(meta.mask, meta.tokens != 0)
        assert torch.equal(meta.positions, torch.arange(16).int().expand(store.n_rows, 16))
        assert meta.mask.sum() - 16 < 5000 <= meta.mask.sum()
    for hook_point in (HOOK, OTHER):
        wanted = FakeModel().value(meta.tokens, meta.positions, hook_point).to(getattr(torch, dtype))
        assert torch.equal(store.read(hook_point, 0, store.n_rows), wanted)


@pytest.mark.parametrize("target", ["activations-1d", "activations-2d"])
def test_zarr_reads_the_same(tokens, place, target):
    store = make_store(place, tokens, target=target)
    group = zarr.open_group(str(store.path), mode="r")
    assert sorted(group.array_keys()) == sorted([HOOK, "tokens", "positions", "context_ids", "mask"])
    bits = group[HOOK]
    assert (bits.dtype, bits.fill_value, bits.attrs["torch_dtype"]) == (np.dtype("uint16"), 0x7FC0, "bfloat16")
    assert torch.equal(torch.from_numpy(bits[:]).view(torch.bfloat16), store.read(HOOK, 0, store.n_rows))
    for name in ("tokens", "positions", "context_ids", "mask"):
        assert torch.equal(torch.from_numpy(group[name][:]), store.read(name, 0, store.n_rows))
    # What the last chunk is filled up with reads as NaN, and so would a missing chunk.
    last = store.array(HOOK).layout
    tail = np.fromfile(store.path / HOOK / last.chunk_file(last.n_chunks - 1), dtype="<u2")
    filled = (last.n_chunks * last.chunk_rows - store.n_rows) * last.row_bytes // 2
    assert filled > 0
    assert (tail[-filled:] == 0x7FC0).all()


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(tokens, place, tmp_path):
    whole = make_store(place, tokens)
    model = FakeModel(stop_after=25)
    with pytest.raises(KeyboardInterrupt):
        make_store(tmp_path / "other", tokens, model)
    (path,) = [p for p in (tmp_path / "other").iterdir() if p.is_dir()]
    with pytest.raises(DataError, match=r"the activation store is incomplete: .*dvc repro -s -f generate"):
        open_store(path)
    recorded = (path / HOOK / writer.DIGESTS_FILE).read_text().splitlines()
    assert recorded
    again = FakeModel()
    make_store(tmp_path / "other", tokens, again)
    assert len(again.calls) < len(tokens.train.read()) // 8
    assert contents(path) == contents(whole.path)


def test_nothing_is_computed_for_a_whole_store(tokens, place):
    store = make_store(place, tokens)
    before = contents(store.path)

    def never(hook_points):
        raise AssertionError("the model was loaded")

    generate_store(tokens, facts(), never, settings(), place)
    assert contents(store.path) == before


def test_a_further_hook_point_joins_the_same_store(tokens, place, tmp_path):
    first = make_store(place, tokens)
    model = FakeModel()
    both = make_store(place, tokens, model, hook_points=(HOOK, OTHER))
    assert both.path == first.path
    assert set(model.calls) == {(OTHER,)}
    at_once = make_store(tmp_path / "other", tokens, hook_points=(HOOK, OTHER))
    assert contents(at_once.path) == contents(both.path)
    assert store_manifest(open_store(both.path, [HOOK])) == store_manifest(first)


def _damage_size(path):
    path.write_bytes(path.read_bytes()[:100])


def _damage_content(path):
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [os.unlink, _damage_size, _damage_content], ids=["missing", "truncated", "altered"])
def test_generating_again_repairs_only_what_is_damaged(tokens, place, damage):
    store = make_store(place, tokens)
    before = contents(store.path)
    damage(store.path / HOOK / "c.5.0")
    model = FakeModel()
    make_store(place, tokens, model)
    assert contents(store.path) == before
    assert 0 < len(model.calls) <= 11  # the block's 1,024 rows are about 9 batches of 8 contexts


@pytest.mark.parametrize("file", ["zarr.json", f"{HOOK}/zarr.json", f"{HOOK}/digests", "tokens/zarr.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"not json"])
def test_generating_again_repairs_descriptions(tokens, place, file, content):
    store = make_store(place, tokens)
    before = contents(store.path)
    (store.path / file).write_bytes(content)
    make_store(place, tokens)
    assert contents(store.path) == before


def test_a_torn_record_is_no_record(tokens, place):
    store = make_store(place, tokens)
    before = contents(store.path)
    record = store.path / HOOK / writer.DIGESTS_FILE
    for torn in (record.read_bytes()[:-10], record.read_bytes() + b"\xff more"):
        record.write_bytes(torn)
        make_store(place, tokens)
        assert contents(store.path) == before


def test_leftovers_of_a_killed_writer_are_removed(tokens, place):
    store = make_store(place, tokens)
    (store.path / HOOK / "c.1.0.partial").write_bytes(b"x")
    (store.path / "zarr.0123.partial").write_bytes(b"x")
    make_store(place, tokens)
    assert list(store.path.rglob("*.partial")) == []


def test_settings_tokens_and_model_make_the_fingerprint_and_hook_points_do_not(tokens, place, tmp_path):
    base = make_store(place, tokens).fingerprint
    assert make_store(place, tokens, hook_points=(OTHER,)).fingerprint == base
    changed = [
        make_store(place, tokens, **change).fingerprint
        for change in (
            {"model_batch_size": 4},
            {"total_tokens": 4000},
            {"target": "activations-2d"},
            {"storage_dtype": "float32"},
            {"perm_seed": 7},
            {"ignore_token_ids": (0, 1)},
            {"backend": "transformer_lens"},
            {"model_dtype": "bfloat16"},
            {"quantization": "8bit"},
            {"compressor": "blosc-lz4"},
            {"attention": "eager"},
        )
    ]
    other = make_tokens(tmp_path / "tokens.zarr", n_contexts=401)
    changed.append(make_store(place, other).fingerprint)
    changed.append(generate_store(tokens, facts(digest="another"), lambda hook_points: FakeModel(), settings(), place).name)
    assert len({base, *changed}) == 14


def test_the_stores_settings_have_how_a_model_is_quantised_and_not_where_it_lies():
    def config(**changes):
        params = load_params(REPOSITORY / "params.yaml")
        params = replace(params, model=replace(params.model, **changes))
        made = GenerationSettings.from_params(params)
        return fingerprint_config(made, tokens_digest="t", ignore_token_ids=(), model_digest="m")

    base = config()
    assert config(device_map="auto") == config(device="cpu") == base
    assert config(quantization="4bit") == {**base, "quantization": "4bit"}


def test_rows_of_two_models_join_on_the_same_tokens(tokens, place):
    narrow, wide = make_store(place, tokens), make_store(place, tokens, FakeModel(width=32))
    assert narrow.chunk_rows == 4 * wide.chunk_rows
    ours, theirs = (store.read_rows_meta(0, 5000) for store in (narrow, wide))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("target", ["activations-1d", "activations-2d"])
def test_a_non_finite_activation_is_named(tokens, place, target, dtype):
    with pytest.raises(NumericsError) as caught:
        make_store(place, tokens, FakeModel(bad_token=7), target=target, storage_dtype=dtype)
    message = str(caught.value)
    assert message.startswith(f"hook point {HOOK}: context ")
    assert "token id 7 (store row " in message
    assert message.endswith("non-finite activation (nan); first at a layer, of 1 context of 16 tokens")
    numbers = [int(word) for word in message.replace(",", " ").replace(")", " ").replace(":", " ").split() if word.isdigit()]
    context, position, token, row = numbers[:4]
    assert tokens.train.read()[context, position] == token == 7
    store = make_store(place, tokens, target=target)
    meta = store.read_rows_meta(row, row + 1)
    assert int(meta.context_ids[0]) == context
    if target == "activations-1d":
        assert int(meta.positions[0]) == position


def test_float16_overflow_names_the_storage_dtype(tokens, place):
    with pytest.raises(NumericsError, match=r"activation 70000 overflows activations.storage_dtype float16; store bfloat16"):
        make_store(place, tokens, FakeModel(bad_token=7, bad_value=7e4), storage_dtype="float16")


def test_a_value_that_is_not_stored_may_be_anything(tokens, place):
    make_store(place, tokens, FakeModel(bad_token=0))  # id 0 is ignored


def test_a_second_process_on_the_store_is_refused(tokens, place):
    path = make_store(place, tokens).path
    with (
        locked(place / f"{path.name}.lock", "the activation store"),
        pytest.raises(DataError, match=rf"activation store .* is in use by another process \(pid {os.getpid()}\)"),
    ):
        make_store(place, tokens)


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tokens, place, tmp_path, monkeypatch):
    whole = make_store(place, tokens)
    replace, done = os.replace, []

    def full(source, target):
        if str(target).endswith("c.9.0"):
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(writer.os, "replace", full)
    with pytest.raises(DataError, match=r"no space left on the device .* the chunks written so far are kept"):
        make_store(tmp_path / "other", tokens)
    monkeypatch.setattr(writer.os, "replace", replace)
    (path,) = [p for p in (tmp_path / "other").iterdir() if p.is_dir()]
    assert list(path.rglob("*.partial")) == []
    model = FakeModel()
    assert contents(make_store(tmp_path / "other", tokens, model).path) == contents(whole.path)
    assert len(model.calls) < 40


def test_too_small_a_disk_is_refused_before_anything_is_computed(tokens, place, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5))
    model = FakeModel()
    with pytest.raises(DataError, match="no space left on the device for activations"):
        make_store(place, tokens, model)
    assert model.calls == []


def test_contexts_of_another_size_are_refused(tokens, place):
    with pytest.raises(DataError, match=r"contexts of 16 tokens, activations.context_size = 32; run `dvc repro tokenize`"):
        make_store(place, tokens, context_size=32)
