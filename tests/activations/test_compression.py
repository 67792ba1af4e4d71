"""Compressed stores: zarr reads them, the rows are those of a store that is not compressed, and what is damaged is found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import zarr

from pipeline.activations.compression import compressor
from pipeline.activations.fingerprint import GenerationSettings
from pipeline.activations.reader import open_store
from pipeline.activations.schema import ROW_ARRAYS
from pipeline.errors import DataError
from pipeline.params.choices import COMPRESSORS
from tests.activations.cases import HOOK, FakeModel, contents, make_store, settings

ITEMS = {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1}


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("dtype", ITEMS)
@pytest.mark.parametrize("target", ["activations-1d", "activations-2d"])
def test_the_rows_are_those_of_a_store_without(tokens, place, name, dtype, target):
    plain = make_store(place, tokens, target=target, storage_dtype=dtype)
    store = make_store(place, tokens, target=target, storage_dtype=dtype, compressor=name)
    assert store.path != plain.path
    for array in (HOOK, *ROW_ARRAYS):
        assert torch.equal(store.read(array, 0, store.n_rows), plain.read(array, 0, plain.n_rows)), array
        assert torch.equal(store.read(array, 77, 301), plain.read(array, 77, 301)), array
    store.verify()
    group = zarr.open_group(str(store.path), mode="r")
    for array in sorted(group.array_keys()):
        (codec,) = group[array].compressors
        assert f"blosc-{codec.cname.value}" == name
        bits = torch.from_numpy(group[array][:])
        ours = store.array(array).whole()
        assert torch.equal(bits if bits.dtype == ours.dtype else bits.view(ours.dtype), ours), array
    ways = [each.batches(64, seed=3, epochs=1, buffer_rows=512, drop_last=False) for each in (plain, store)]
    for a, b in itertools.zip_longest(*ways):
        assert torch.equal(a.rows, b.rows)
        assert torch.equal(a.activations[HOOK], b.activations[HOOK])
        assert torch.equal(a.tokens, b.tokens)


def test_rows_that_repeat_take_less_room_and_figures_count_it(tokens, place):
    plain, store = make_store(place, tokens), make_store(place, tokens, compressor="blosc-zstd")
    stored = {each: each.array(HOOK).stored_bytes for each in (plain, store)}
    layout = plain.array(HOOK).layout
    assert stored[plain] == layout.n_chunks * layout.chunk_bytes
    assert stored[store] == sum(path.stat().st_size for path in (store.path / HOOK).glob("c.*"))
    assert stored[store] < stored[plain] / 2  # forty tokens, sixteen positions


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(tokens, place, tmp_path):
    whole = make_store(place, tokens, compressor="blosc-lz4")
    with pytest.raises(KeyboardInterrupt):
        make_store(tmp_path / "other", tokens, FakeModel(stop_after=25), compressor="blosc-lz4")
    again = FakeModel()
    store = make_store(tmp_path / "other", tokens, again, compressor="blosc-lz4")
    assert len(again.calls) < len(tokens.train.read()) // 8
    assert contents(store.path) == contents(whole.path)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "header"])
def test_a_damaged_chunk_is_named_and_made_again(tokens, place, damage):
    store = make_store(place, tokens, compressor="blosc-zstd")
    before = contents(store.path)
    chunk = store.path / HOOK / "c.2.0"
    content = bytearray(chunk.read_bytes())
    if damage == "flipped":
        content[40] ^= 1
    elif damage == "header":
        content[4:8] = (2**31).to_bytes(4, "little")  # that it unpacks to two GiB
    chunk.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, bytes(content)))
    with pytest.raises(DataError, match=rf"array '{HOOK}': chunk 2 is (altered|truncated).*dvc repro -s -f generate"):
        open_store(store.path).verify()
    model = FakeModel()
    make_store(place, tokens, model, compressor="blosc-zstd")
    assert 0 < len(model.calls) < 30
    assert contents(store.path) == before


def test_a_store_says_how_it_is_compressed(tokens, place):
    """A zarr.json of other codecs is another array's; and compressed stores have names of their own."""
    store = make_store(place, tokens, compressor="blosc-lz4")
    node = store.path / HOOK / "zarr.json"
    node.write_text(node.read_text().replace('"lz4"', '"zstd"'))
    with pytest.raises(DataError, match=r"zarr\.json is altered"):
        open_store(store.path)
    names = {make_store(place, tokens, compressor=name).path.name for name in (None, *COMPRESSORS)}
    assert len(names) == 3
    assert GenerationSettings.of_config({**settings().__dict__, "ignore_token_ids": []}).compressor is None
    with pytest.raises(DataError, match=r"activations.compressor.*'blosc-lz5'.*blosc-lz4"):
        compressor("blosc-lz5")


def test_what_is_no_buffer_is_not_unpacked():
    made = compressor("blosc-zstd")
    assert made is not None
    content = np.arange(1000, dtype="<u2").tobytes()
    packed, out = made.packed(content, 2), bytearray(2000)
    assert made.unpack(packed, memoryview(out))
    assert bytes(out) == content
    assert not made.unpack(packed, memoryview(bytearray(1998)))  # one of another size
    assert not made.unpack(packed[:10], memoryview(out))
    assert not made.unpack(b"\xff" * 4 + (2000).to_bytes(4, "little") + b"\xff" * 40, memoryview(out))
