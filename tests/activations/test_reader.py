"""Opening and reading a store: the fast path equals zarr's, and every fault is named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from pipeline.activations.fingerprint import check_made_for
from pipeline.activations.generation import store_manifest
from pipeline.activations.reader import ActivationStore, open_store
from pipeline.activations.schema import calibration_rows, chunk_rows, hook_layouts, row_layouts, training_rows
from pipeline.activations.vectored import read_rows_to
from pipeline.activations.writer import StoreWriter
from pipeline.contracts.sealing import sealed
from pipeline.errors import DataError
from pipeline.files import read_json, write_json
from pipeline.opening import open_activations
from tests.activations.cases import HOOK, OTHER, make_store, settings
from tests.sealing import rewritten

AGAIN = r"; run `dvc repro -s -f generate`"


@pytest.fixture
def store(tokens, tmp_path, small_blocks, monkeypatch) -> ActivationStore:
    """A store where open_activations looks for it."""
    monkeypatch.chdir(tmp_path)
    return make_store(tmp_path / "data" / "store", tokens, hook_points=(HOOK, OTHER))


@pytest.fixture
def manifest(store, tmp_path) -> Path:
    write_json(tmp_path / "activations.json", sealed(store_manifest(store)))
    return tmp_path / "activations.json"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A store written chunk by chunk from random bits, with a partial last chunk: 1,000 rows in chunks of 64."""
    place = tmp_path_factory.mktemp("written") / "fingerprint"
    layouts = [
        *row_layouts(1000, None, 64),
        *(layout for d in ("bfloat16", "float16", "float32") for layout in hook_layouts(d, 1000, 6, None, 64, d)),
    ]
    config = {"target": "activations-1d", "context_size": 8, "storage_dtype": "bfloat16"}
    about = {"format_version": 1, "fingerprint": "f", "config": config, "model": {}, "n_rows": 1000, "chunk_rows": 64}
    writer = StoreWriter(place, about, layouts)
    rng = np.random.default_rng(0)
    for layout in layouts:
        bits = torch.from_numpy(rng.integers(0, 256, (1000, layout.row_bytes), dtype=np.uint8))
        bits = bits.remainder(2) if layout.name == "mask" else bits
        writer.write_rows(layout.name, 0, bits.view(layout.element.torch_dtype).view(layout.shape), None)
    writer.finish()
    return place


@pytest.fixture(scope="module")
def by_zarr(written) -> dict[str, np.ndarray]:
    """Every array of it as zarr reads it, whole."""
    return {name: np.ascontiguousarray(array[:]) for name, array in zarr.open_group(str(written), mode="r").arrays()}


@given(ends=st.tuples(st.integers(0, 1000), st.integers(0, 1000)), fresh=st.booleans(), data=st.data())
def test_reading_equals_zarrs_reading(written, by_zarr, ends, fresh, data):
    """Any rows of any array, verified on this read or before, bit for bit."""
    dtype = data.draw(st.sampled_from(["bfloat16", "float16", "float32"]))
    store = _opened(written, dtype)
    if not fresh:
        store.verify()
    start, stop = min(ends), max(ends)
    for name in (dtype, "tokens", "positions", "context_ids", "mask"):
        ours = store.read(name, start, stop).contiguous()
        theirs = by_zarr[name][start:stop]
        assert tuple(ours.shape) == theirs.shape
        assert ours.view(torch.uint8).numpy().tobytes() == theirs.tobytes()


@given(data=st.data(), dtype=st.sampled_from(["bfloat16", "float16", "float32"]), verified=st.booleans())
def test_scattered_rows_equal_zarrs_reading(written, by_zarr, data, dtype, verified):
    """Any rows of a chunk put to any places, and no other place touched."""
    store = _opened(written, dtype)
    if verified:
        store.verify()
    chunk = data.draw(st.integers(0, 15))
    first, last = store.array(dtype).layout.rows_of(chunk)
    start, stop = sorted(data.draw(st.tuples(st.integers(first, last), st.integers(first, last))))
    places = np.array(data.draw(st.permutations(range(70))), dtype=np.int64)[: stop - start]
    for name in (dtype, "tokens", "mask"):
        array = store.array(name)
        out = array.empty(70).zero_()
        array.scatter_chunk(out, places, chunk, start, stop)
        wanted = np.zeros((70, array.layout.row_bytes), dtype=np.uint8)
        rows = by_zarr[name][start:stop]
        wanted[places] = rows.view(np.uint8).reshape(len(places), array.layout.row_bytes)
        assert out.contiguous().view(torch.uint8).numpy().tobytes() == wanted.tobytes()


def test_more_rows_than_one_call_takes(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, (3000, 6), dtype=np.uint8)
    (tmp_path / "rows").write_bytes(content.tobytes())
    places = np.random.default_rng(1).permutation(3000)
    out = np.zeros((3000, 6), dtype=np.uint8)
    assert read_rows_to(tmp_path / "rows", 12, 6, out.ctypes.data, places[:2998])
    np.testing.assert_array_equal(out[places[:2998]], content[2:])
    assert not read_rows_to(tmp_path / "rows", 12, 6, out.ctypes.data, places)  # too short by two rows


def _opened(path: Path, dtype: str) -> ActivationStore:
    attributes = dict(zarr.open_group(str(path), mode="r").attrs)
    attributes["config"] = {**attributes["config"], "storage_dtype": dtype}
    return ActivationStore(path, attributes, [dtype])


def test_a_manifest_and_a_directory_open_the_same_store(store, manifest):
    by_manifest, by_directory = open_activations(manifest), open_activations(store.path)
    assert by_manifest.digests == by_directory.digests == store.digests
    assert by_manifest.hook_points == [HOOK, OTHER]
    assert (by_manifest.width(HOOK), by_manifest.shape(HOOK), by_manifest.n_tokens) == (8, (5000, 8), 5000)
    assert by_manifest.context_size == 16


def test_the_manifest_has_no_place_or_time_of_this_machine(store, manifest, tmp_path):
    text = manifest.read_text()
    assert str(tmp_path) not in text
    assert read_json(manifest, "manifest")["store"] == store.path.name
    assert read_json(manifest, "manifest")["n_rows"] == 5000


def test_the_store_root_may_be_elsewhere(store, manifest, tmp_path, monkeypatch):
    shutil.move(tmp_path / "data" / "store", tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"{store.path.name}: the activation store is missing{AGAIN}"):
        open_activations(manifest)
    monkeypatch.setenv("SCOPELINE_STORE", str(tmp_path / "elsewhere"))
    assert open_activations(manifest).digests == store.digests


def test_a_store_lies_beside_its_manifest_wherever_one_works(store, manifest, tmp_path, monkeypatch):
    """A notebook in another directory opens it by the manifest's path."""
    place = manifest.resolve()
    (tmp_path / "data").mkdir(exist_ok=True)
    beside = place.parent / "store"
    if not beside.exists():
        shutil.copytree(store.path.parent, beside)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert open_activations(place).digests == store.digests


def _truncate(path):
    path.write_bytes(path.read_bytes()[:99])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (f"{HOOK}/c.3.0", os.unlink, rf"array '{HOOK}': chunk 3 is missing"),
        ("tokens/c.0", os.unlink, r"array 'tokens': chunk 0 is missing"),
        (f"{HOOK}/c.3.0", _truncate, rf"array '{HOOK}': chunk 3 is truncated: 99 bytes, wanted 4,096"),
        (f"{HOOK}/digests", os.unlink, rf"array '{HOOK}': its list of chunk digests 'digests' is missing or altered"),
        (f"{HOOK}/digests", _flip, rf"array '{HOOK}': its list of chunk digests 'digests' is missing or altered"),
        (f"{HOOK}/zarr.json", os.unlink, rf"zarr.json: array '{HOOK}' of the activation store is missing|unknown hook point"),
        (f"{HOOK}/zarr.json", _truncate, rf"zarr.json: array '{HOOK}' of the activation store is damaged"),
        ("zarr.json", os.unlink, r"zarr.json: the activation store's description is missing"),
        ("zarr.json", _truncate, r"zarr.json: the activation store's description is damaged"),
    ],
)
def test_damage_is_named_when_the_store_is_opened(store, manifest, file, damage, message):
    damage(store.path / file)
    with pytest.raises(DataError, match=rf"({message}).*{AGAIN}"):
        open_activations(manifest)


def test_an_altered_chunk_is_named_when_it_is_read(store, manifest):
    _flip(store.path / HOOK / "c.3.0")
    opened = open_activations(manifest)
    assert len(opened.read(HOOK, 0, 700)) == 700
    message = rf"{store.path.name}: activation store, array '{HOOK}': chunk 3 is altered: its digest .*{AGAIN}"
    for read in (
        lambda: opened.read(HOOK, 768, 770),
        lambda: opened.read(HOOK, 0, 5000),
        opened.verify,
        lambda: list(opened.batches(64, epochs=1)),
    ):
        with pytest.raises(DataError, match=message):
            read()


def test_another_description_is_not_read_by_the_fast_path(store, manifest):
    path = store.path / HOOK / "zarr.json"
    about = read_json(path, "array")
    write_json(path, {**about, "codecs": [*about["codecs"], {"name": "zstd", "configuration": {}}]})
    with pytest.raises(DataError, match=r"its description zarr.json is altered"):
        open_activations(manifest)


@pytest.mark.parametrize("change", ["another key", "a name of a key", "fill value", "attribute", "dtype"])
def test_a_description_that_says_anything_else_is_refused(store, manifest, change):
    """Also what nothing reads: the file is not the one that was written."""
    path = store.path / HOOK / "zarr.json"
    about = read_json(path, "array")
    if change == "another key":
        about["note"] = []
    elif change == "a name of a key":
        about["storage_transformerr"] = about.pop("storage_transformers", [])
    elif change == "fill value":
        about["fill_value"] = 1
    elif change == "attribute":
        about["attributes"]["digesu"] = about["attributes"]["digest"]
    else:
        about["attributes"]["torch_dtype"] = "bfloat17"
    write_json(path, about)
    with pytest.raises(DataError, match=r"its description zarr.json is altered"):
        open_activations(manifest)


@pytest.mark.parametrize("key", ["tokens_digest", "model_digest", "perm_seed", "model_batch_size"])
def test_settings_that_the_fingerprint_was_not_made_of_are_refused(store, manifest, key):
    about = read_json(store.path / "zarr.json", "group")
    value = about["attributes"]["config"][key]
    about["attributes"]["config"][key] = value + 1 if isinstance(value, int) else value[:-1] + "x"
    write_json(store.path / "zarr.json", about)
    for place in (manifest, store.path):
        with pytest.raises(DataError, match=r"description zarr.json is altered"):
            open_activations(place)


def test_another_model_than_the_manifest_s_is_refused(store, manifest):
    about = read_json(store.path / "zarr.json", "group")
    about["attributes"]["model"]["name"] = "another"
    write_json(store.path / "zarr.json", about)
    with pytest.raises(DataError, match=r"its model is .*another"):
        open_activations(manifest)


def test_a_store_of_another_format_is_refused(store):
    about = read_json(store.path / "zarr.json", "group")
    about["attributes"]["format_version"] = 9
    write_json(store.path / "zarr.json", about)
    with pytest.raises(DataError, match="activation store format 9, wanted 1"):
        open_activations(store.path)


def test_a_manifest_of_another_store_is_refused(store, manifest):
    fingerprint = store.fingerprint
    rewritten(manifest, lambda content: content.update(fingerprint="0123"))
    with pytest.raises(DataError, match=rf"made for other parameters: its fingerprint is {store.fingerprint}, .* wants 0123"):
        open_activations(manifest)
    rewritten(manifest, lambda content: content.update(fingerprint=fingerprint))
    rewritten(manifest, lambda content: content["hook_points"][HOOK].update(digest="4567"))
    with pytest.raises(DataError, match=rf"array '{HOOK}': altered: its content digest is .* has 4567"):
        open_activations(manifest)


def test_damaged_and_missing_manifests_are_named(tmp_path):
    with pytest.raises(DataError, match=rf"the manifest of the activations is missing{AGAIN}"):
        open_activations(tmp_path / "activations.json")
    for content in ("", "[]", "{}", json.dumps(sealed({"store": "s"}))):
        (tmp_path / "activations.json").write_text(content)
        with pytest.raises(DataError, match=r"activations.json: (not )?the manifest of the activation(s| store).*damaged"):
            open_activations(tmp_path / "activations.json")


def test_unknown_hook_points_list_the_known_ones(store):
    message = rf"unknown hook point 'blocks.1.hook_resid_pst'; did you mean '{OTHER}'\? \(known: {HOOK}, {OTHER}\)"
    with pytest.raises(DataError, match=message):
        open_store(store.path, ["blocks.1.hook_resid_pst"])
    with pytest.raises(DataError, match=message):
        store.read("blocks.1.hook_resid_pst", 0, 1)


def test_a_store_for_other_parameters_lists_what_differs(store):
    check_made_for("place", store.config, settings())
    check_made_for("place", store.config, settings(ignore_token_ids=(0,)))
    with pytest.raises(DataError) as caught:
        check_made_for("place", store.config, settings(total_tokens=4000, storage_dtype="float32", ignore_token_ids=(3,)))
    assert str(caught.value) == (
        "place: the activation store was made for other parameters (activations.total_tokens 5000, not 4000; "
        "activations.storage_dtype 'bfloat16', not 'float32'; activations.ignore_token_ids [0], not [3]); "
        "run `dvc repro -s -f generate`"
    )
    check_made_for("place", store.config, settings(total_tokens=4000), only=("target", "context_size"))


@pytest.mark.parametrize(
    ("width", "dtype", "context_size", "rows"),
    [
        (128, "bfloat16", None, 16384),
        (768, "bfloat16", None, 2048),
        (768, "float32", None, 1024),
        (16, "bfloat16", None, 32768),
        (768, "bfloat16", 1024, 2),
        (8192, "float32", 8192, 1),
    ],
)
def test_chunks_are_the_largest_power_of_two_within_four_mebibytes(width, dtype, context_size, rows):
    assert chunk_rows(width, dtype, context_size) == rows


def test_calibration_rows_are_kept_from_training(store):
    assert training_rows(store, 0) == (0, 5000)
    assert training_rows(store, 1) == (0, 4864)
    assert training_rows(store, 200) == (0, 4608)
    assert calibration_rows(store, 200) == (4608, 5000)
    assert training_rows(store, 4800) == (0, 200)
    with pytest.raises(DataError, match=r"fold.calibration_tokens = 5,000 leaves none to train on"):
        training_rows(store, 5000)
