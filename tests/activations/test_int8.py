"""Activations in one byte a number: how far they are off, whatever the rows are; and stores of them."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from pipeline.activations.codecs import int8
from pipeline.activations.codecs.int8 import DIMENSIONS, INT8, SCALE
from pipeline.activations.codecs.interface import ROWS
from pipeline.activations.reader import ActivationStore
from pipeline.activations.schema import hook_layouts
from pipeline.corpus.tokens import TokenStore
from pipeline.errors import DataError
from pipeline.norms.exclusion import MASSIVE_FACTOR, NormLimits
from pipeline.seeding import generator
from pipeline.training.source import StoreSource
from tests.activations.cases import HOOK, OTHER, FakeModel, contents, make_store, make_tokens
from tests.messages import saying

WIDTH = 32


def rows(n: int) -> torch.Tensor:
    """Rows of a residual stream's kind: dimensions of unlike width, some far from zero, a few 50 times as wide."""
    random = generator(0, "tests", "int8")
    x = torch.randn(n, WIDTH, generator=random) * torch.linspace(0.5, 3, WIDTH)
    x[:, 3] *= 50
    x[:, [7, 20]] += 60
    return x


def decoded(x: torch.Tensor, shared: dict[str, torch.Tensor]) -> torch.Tensor:
    return INT8.decode({**INT8.encode(x, shared), **shared}, torch.float32)


def test_centre_and_spread_are_mean_and_deviation_of_the_ordinary_finite_rows():
    x = rows(200)
    x[5, 2], x[9, 0], x[50] = math.nan, math.inf, 1e6
    x[:, 11] = 4.0
    centre, spread = INT8.measure(x.view(20, 10, WIDTH))[DIMENSIONS].double()
    ordinary = [row for i, row in enumerate(x.double().tolist()) if i not in (5, 9, 50)]
    deviations = []
    for d in range(WIDTH):
        values = [row[d] for row in ordinary]
        mean = sum(values) / len(values)
        deviations.append(math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)))
        assert float(centre[d]) == pytest.approx(mean, rel=1e-4, abs=1e-4)
    varying = sorted(deviation for d, deviation in enumerate(deviations) if d != 11)
    assert deviations.pop(11) == 0.0
    assert float(spread[11]) == pytest.approx(varying[(len(varying) - 1) // 2] / 16, rel=1e-4)
    others = torch.cat([spread[:11], spread[12:]])
    torch.testing.assert_close(others, torch.tensor(deviations).double(), rtol=1e-4, atol=0)
    assert int8.MASSIVE_FACTOR == MASSIVE_FACTOR


def test_numbers_are_rounded_to_the_nearest_of_their_row():
    x = rows(300)
    shared = INT8.measure(x)
    parts = INT8.encode(x, shared)
    centre, spread = shared[DIMENSIONS].double()
    for i, row in enumerate(x.double()):
        levels = [(float(value) - float(centre[d])) / float(spread[d]) for d, value in enumerate(row)]
        scale = max(abs(level) for level in levels) / 127
        assert float(parts[SCALE][i]) == pytest.approx(scale, rel=1e-5)
        for d, level in enumerate(levels):
            assert abs(level / scale - int(parts[ROWS][i, d])) < 0.501
        assert parts[ROWS][i].abs().max() == 127
    wanted = centre + parts[ROWS].double() * parts[SCALE].double() * spread
    torch.testing.assert_close(decoded(x, shared).double(), wanted, rtol=1e-5, atol=1e-5)


@given(
    values=st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=3, max_size=3), min_size=1, max_size=6),
    measured=st.booleans(),
)
def test_any_numbers_are_off_by_half_a_step_at_most(values, measured):
    x = torch.tensor(values)
    shared = INT8.measure(x if measured else rows(50)[:, :3])
    off = (decoded(x, shared).double() - x.double()).abs()
    step = INT8.encode(x, shared)[SCALE].double() * shared[DIMENSIONS][1].double()
    largest = torch.maximum(x.abs().amax(), shared[DIMENSIONS][0].abs().amax()).double()
    assert (off <= step * 0.501 + 1e-6 * largest + 1e-30).all()


def test_every_dimension_keeps_what_it_holds_beside_fifty_times_wider_ones():
    x = rows(4000)
    off = decoded(x, INT8.measure(x[:500])) - x
    assert float((off.square().mean(0) / x.var(0)).max()) < 1e-4
    row_alone = (x / x.abs().amax(-1, keepdim=True) * 127).round() * x.abs().amax(-1, keepdim=True) / 127 - x
    assert float((row_alone.square().mean(0) / x.var(0)).max()) > 1e-2


def test_massive_tokens_keep_length_and_direction_and_spoil_no_other():
    x = rows(4000)
    ordinary = decoded(x, INT8.measure(x[:500]))
    massive = x.clone()
    massive[::100, 0] = 1000 * x.norm(dim=1).median()
    massive[1::100] *= 1000
    found = decoded(massive, INT8.measure(massive[:500]))
    for first in (0, 1):
        wanted = massive[first::100]
        torch.testing.assert_close(found[first::100].norm(dim=1), wanted.norm(dim=1), rtol=0.05, atol=0)
        assert torch.nn.functional.cosine_similarity(found[first::100], wanted).min() > 0.995
    others = torch.arange(4000) % 100 > 1
    off = (found - massive)[others].square().mean(0)
    assert (off <= 1.2 * (ordinary - x)[others].square().mean(0) + 1e-9).all()


def test_zeros_and_rows_that_are_all_alike():
    zeros = torch.zeros(4, WIDTH)
    assert torch.equal(decoded(zeros, INT8.measure(zeros)), zeros)
    alike = rows(1).expand(5, WIDTH)
    torch.testing.assert_close(decoded(alike, INT8.measure(alike)), alike, rtol=1e-5, atol=1e-5)
    x = rows(500)
    shared = INT8.measure(x)
    off = decoded(zeros, shared).abs()
    assert (off <= INT8.encode(zeros, shared)[SCALE] * shared[DIMENSIONS][1] * 0.501).all()


def test_a_measured_batch_without_a_finite_row():
    x = torch.full((3, WIDTH), math.nan)
    shared = INT8.measure(x)
    assert shared[DIMENSIONS].isfinite().all()
    assert INT8.encode(x, shared)[SCALE].isnan().all()


def test_a_row_is_decoded_the_same_alone_and_among_others(monkeypatch):
    x = rows(101)
    shared = INT8.measure(x)
    parts = {**INT8.encode(x, shared), **shared}
    whole = {dtype: INT8.decode(parts, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64)}
    monkeypatch.setattr(int8, "BLOCK_NUMBERS", 3 * WIDTH)
    for dtype, wanted in whole.items():
        assert torch.equal(INT8.decode(parts, dtype), wanted)
        assert torch.equal(wanted, whole[torch.float32].to(dtype))
        some = {**parts, ROWS: parts[ROWS][50:53], SCALE: parts[SCALE][50:53]}
        assert torch.equal(INT8.decode(some, dtype), wanted[50:53])


# ---------------------------------------------------------------------------------------------------------------- stores


def make(place: Path, tokens: TokenStore, model: FakeModel | None = None, **changes: object) -> ActivationStore:
    return make_store(place, tokens, model, **{"storage_dtype": "int8", **changes})


def wanted_rows(store: ActivationStore, hook_point: str) -> torch.Tensor:
    meta = store.read_rows_meta(0, store.n_rows)
    return FakeModel().value(meta.tokens, meta.positions, hook_point)


@pytest.mark.parametrize("target", ["activations-1d", "activations-2d"])
def test_a_store_holds_what_the_codec_makes_of_the_models_activations(tokens, place, target):
    store = make(place, tokens, hook_points=(HOOK, OTHER), target=target)
    assert store.hook_points == [HOOK, OTHER]
    for name in store.hook_points:
        wanted = wanted_rows(store, name)
        shared = store.shared(name)
        assert torch.equal(store.read(name, 0, store.n_rows), decoded(wanted, shared))
        assert float((store.read(name, 0, store.n_rows) - wanted).abs().max()) < wanted.std() / 20
        group = zarr.open_group(str(store.path), mode="r")
        parts = INT8.encode(wanted, shared)
        for part, stored in {**parts, **shared}.items():
            array = group[name if part == ROWS else f"{name}@{part}"]
            assert torch.equal(torch.from_numpy(array[:]), stored)
    # What the codec has measured is the first model batch, kept tokens in 1-D.
    first = store.config["model_batch_size"]
    ids = torch.randperm(400, generator=generator(42, "contexts"))[:first]
    batch = torch.from_numpy(tokens.train.read())[ids]
    acts = FakeModel().value(batch, torch.arange(16).expand_as(batch), HOOK)
    measured = INT8.measure(acts[batch != 0] if target == "activations-1d" else acts)
    assert torch.equal(store.shared(HOOK)[DIMENSIONS], measured[DIMENSIONS])


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(tokens, place, tmp_path):
    whole = make(place, tokens)
    for stop_after in (1, 25):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "other", tokens, FakeModel(stop_after=stop_after))
    make(tmp_path / "other", tokens)
    (path,) = [p for p in (tmp_path / "other").iterdir() if p.is_dir()]
    assert contents(path) == contents(whole.path)
    both = make(place, tokens, hook_points=(HOOK, OTHER))
    at_once = make(tmp_path / "at once", tokens, hook_points=(HOOK, OTHER))
    assert contents(both.path) == contents(at_once.path)


def _alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("file", [f"{HOOK}@dimensions/c.0.0", f"{HOOK}@scale/c.5.0", f"{HOOK}/c.7.0"])
@pytest.mark.parametrize("damage", [os.unlink, _alter], ids=["missing", "altered"])
def test_what_is_damaged_is_refused_and_made_again(tokens, place, file, damage):
    store = make(place, tokens)
    before = contents(store.path)
    damage(store.path / file)
    array, chunk = file.split("/")
    with pytest.raises(DataError, match=saying(f"'{array}'", f"chunk {chunk.split('.')[1]}", "dvc repro -s -f generate")):
        ActivationStore(store.path, dict(zarr.open_group(str(store.path), mode="r").attrs), [HOOK]).verify()
    model = FakeModel()
    make(place, tokens, model)
    assert contents(store.path) == before
    assert 0 < len(model.calls) <= 11  # one block of five


def test_contexts_larger_than_a_chunk(tokens, place, monkeypatch):
    """Chunks of one context: fewer rows than the shared part has."""
    monkeypatch.setattr("pipeline.activations.schema.CHUNK_BYTES", 200)
    store = make(place, tokens, target="activations-2d", total_tokens=300)
    assert store.chunk_rows == 1
    assert torch.equal(store.read(HOOK, 0, store.n_rows), decoded(wanted_rows(store, HOOK), store.shared(HOOK)))
    _alter(store.path / f"{HOOK}@dimensions" / "c.0.0")
    before = store.shared(HOOK)  # verified when it was first read
    again = make(place, tokens, target="activations-2d", total_tokens=300)
    assert not torch.equal(before[DIMENSIONS], again.shared(HOOK)[DIMENSIONS])


def test_half_the_bytes_of_a_16_bit_store():
    def size(dtype: str, width: int) -> int:
        return sum(layout.row_bytes for layout in hook_layouts(HOOK, 1, width, None, 1, dtype) if not layout.shared)

    assert size("int8", 128) == 132
    assert size("int8", 768) / size("float16", 768) < 0.503


@pytest.mark.parametrize("target", ["activations-1d", "activations-2d"])
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_encoded_batches_are_decoded_where_they_are_used(tokens, place, dtype, target):
    store = make(place, tokens, hook_points=(HOOK, OTHER), storage_dtype=dtype, target=target)
    whole = {name: store.read(name, 0, store.n_rows) for name in store.hook_points}
    size = 96 if target == "activations-1d" else 10
    for wanted in (None, torch.bfloat16):
        plain = list(store.batches(size, epochs=2, dtype=wanted))
        encoded = list(store.batches(size, epochs=2, dtype=wanted, encoded=True))
        assert len(plain) == len(encoded) > 20
        for ours, theirs in zip(encoded, plain, strict=True):
            assert ours.activations == {}
            assert theirs.encoded == {}
            found = ours.on(torch.device("cpu"))
            assert list(found) == list(theirs.activations) == store.hook_points
            for name, x in found.items():
                assert torch.equal(x, theirs.activations[name])
                assert torch.equal(x, whole[name][ours.rows].to(wanted or whole[name].dtype))
                assert theirs.on(torch.device("cpu"))[name] is theirs.activations[name]


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_a_training_source_on_a_device_gives_the_same_batches(tokens, place, dtype, monkeypatch):
    """The device is the CPU here; page-locked memory needs an accelerator."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x.dtype) or x)
    store = make(place, tokens, hook_points=(HOOK, OTHER), storage_dtype=dtype)
    limits = NormLimits({HOOK: float(store.read(HOOK, 0, store.n_rows).float().norm(dim=1).median())})
    about = {"rows": (0, 4096), "limits": limits, "buffer_rows": 1, "seed": 2}
    here = StoreSource(store, (HOOK,), (OTHER,), 96, dtype=torch.float32, **about)
    there = StoreSource(store, (HOOK,), (OTHER,), 96, dtype=None, device=torch.device("cpu"), **about)
    for _, ours, theirs in zip(range(50), there.batches(3), here.batches(3), strict=False):
        assert (ours.index, ours.mask) == (theirs.index, None)
        assert 0 < len(ours.inputs) < 96
        assert torch.equal(ours.inputs.float(), theirs.inputs)
        assert torch.equal(ours.labels.float(), theirs.labels)
    assert set(pinned) == ({torch.int8, torch.float32} if dtype == "int8" else {torch.bfloat16})


def test_tokens_of_one_value_and_of_few_contexts(place, tmp_path):
    """Eight contexts in one model batch, of one token each: nothing varies but the position."""
    tokens = make_tokens(tmp_path / "few.zarr", n_contexts=8)
    store = make(place, tokens, total_tokens=60, model_batch_size=1)
    wanted = wanted_rows(store, HOOK)
    assert float((store.read(HOOK, 0, 60) - wanted).abs().max()) < wanted.std() / 20
