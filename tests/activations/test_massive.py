"""Massive tokens in what training and calibration read of a store: one of two hook points has them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.activations.reader import ActivationStore
from pipeline.corpus.tokens import TokenStore
from pipeline.folding import StoredBatches
from pipeline.norms.exclusion import NormLimits
from pipeline.norms.hook_norm import hook_norm
from pipeline.norms.measure import compute_norms
from pipeline.training.source import StoreSource, TrainingBatch
from tests.activations.cases import HOOK, OTHER, FakeModel, make_store

MASSIVE_TOKEN = 7  # about one in forty
LENGTH = 5000.0  # ten times the median at OTHER is about 3,500
ROWS = (100, 4900)
TARGETS = {"rows": "activations-1d", "contexts": "activations-2d"}


@dataclass
class Model(FakeModel):
    """One token is 5,000 times as long at OTHER."""

    def value(self, tokens: Tensor, positions: Tensor, hook_point: str) -> Tensor:
        x = super().value(tokens, positions, hook_point)
        if hook_point == OTHER:
            x[tokens == MASSIVE_TOKEN] *= LENGTH
        return x


@pytest.fixture(params=TARGETS)
def store(request: pytest.FixtureRequest, tokens: TokenStore, place: Path) -> ActivationStore:
    return make_store(place, tokens, Model(), (HOOK, OTHER), target=TARGETS[request.param])


def limits(store: ActivationStore) -> NormLimits:
    return NormLimits.excluded({name: hook_norm(found) for name, found in compute_norms(store, max_norm_factor=10.0).items()})


def source(store: ActivationStore, at: NormLimits) -> StoreSource:
    """The hook point with massive tokens is read, the other one written."""
    flat = store.target == "activations-1d"
    rows = ROWS if flat else (10, store.n_rows - 5)
    return StoreSource(store, (OTHER,), (HOOK,), 96 if flat else 6, rows, at, buffer_rows=1, seed=2)


def is_massive(row: Tensor) -> bool:
    return math.sqrt(sum(v * v for v in row.tolist())) > 1e5


def test_the_rule_finds_the_massive_token(store: ActivationStore) -> None:
    found = limits(store).limits
    assert set(found) == {HOOK, OTHER}
    x = store.read(OTHER, 0, store.n_rows).reshape(-1, 8).float()
    mask = torch.ones(len(x), dtype=torch.bool)
    if store.target == "activations-2d":
        mask = store.read("mask", 0, store.n_rows).reshape(-1)
    meta = store.read_rows_meta(0, store.n_rows).tokens.reshape(-1)
    above = x.norm(dim=-1) > found[OTHER]
    assert torch.equal(above[mask], (meta == MASSIVE_TOKEN)[mask])
    norm = hook_norm(compute_norms(store, max_norm_factor=10.0)[OTHER])
    assert norm.n_excluded == int((meta == MASSIVE_TOKEN)[mask].sum()) > 50
    assert norm.n_tokens == int((meta != MASSIVE_TOKEN)[mask].sum())


def test_rows_are_left_out_and_tokens_of_contexts_masked(store: ActivationStore) -> None:
    made = source(store, limits(store))
    plain = store.batches(
        made.batch_size, seed=2, hook_points=[OTHER, HOOK], rows=made.rows, buffer_rows=1, dtype=torch.float32
    )
    n_massive = 0
    for batch, whole in zip(itertools.islice(made.batches(0), 60), plain, strict=False):
        x, y = whole.activations[OTHER], whole.activations[HOOK]
        assert batch.index == whole.index
        if store.target == "activations-1d":
            kept = [row for row in range(len(x)) if not is_massive(x[row])]
            n_massive += len(x) - len(kept)
            assert batch.mask is None
            assert torch.equal(batch.inputs, x[kept])
            assert torch.equal(batch.labels, y[kept])
            continue
        assert torch.equal(batch.inputs, x)
        assert torch.equal(batch.labels, y)
        assert batch.mask is not None
        for context, position in itertools.product(range(len(x)), range(store.context_size)):
            massive = is_massive(x[context, position])
            n_massive += massive
            assert bool(batch.mask[context, position]) == (bool(whole.mask[context, position]) and not massive)
    assert n_massive > 50


def test_an_input_that_is_the_label_stays_one_tensor(store: ActivationStore) -> None:
    made = source(store, limits(store))
    same = StoreSource(store, (OTHER,), (OTHER,), made.batch_size, made.rows, made.limits, buffer_rows=1, seed=2)
    batch = next(same.batches(0))
    assert batch.labels is batch.inputs


def equal(first: TrainingBatch, second: TrainingBatch) -> bool:
    masks = (first.mask, second.mask)
    return (
        first.index == second.index
        and torch.equal(first.inputs, second.inputs)
        and torch.equal(first.labels, second.labels)
        and (masks == (None, None) or torch.equal(*masks))  # type: ignore[arg-type]
    )


def test_any_start_gives_the_same_batches(store: ActivationStore) -> None:
    """Also in later epochs, of about 50 batches."""
    made = source(store, limits(store))
    whole = list(itertools.islice(made.batches(0), 130))
    assert len({len(batch.inputs) for batch in whole}) > (2 if store.target == "activations-1d" else 0)
    for start in (1, 49, 77):
        again = list(itertools.islice(made.batches(start), 4))
        assert all(equal(batch, whole[start + i]) for i, batch in enumerate(again))


def test_a_batch_of_nothing_but_excluded_tokens_is_masked(store: ActivationStore) -> None:
    plain = source(store, NormLimits())
    for batch, whole in itertools.islice(
        zip(source(store, NormLimits({HOOK: 0.0})).batches(0), plain.batches(0), strict=False), 3
    ):
        assert batch.mask is not None
        assert batch.mask.shape == batch.inputs.shape[:-1]
        assert not bool(batch.mask.any())
        assert torch.equal(batch.inputs, whole.inputs)
        assert torch.equal(batch.labels, whole.labels)


def test_calibration_masks_massive_tokens(store: ActivationStore) -> None:
    """Of the inputs and of the labels: here the label is massive, which the batches themselves do not hold."""
    stop = store.n_rows
    start, size = (stop - 300, 96) if store.target == "activations-1d" else (stop - 30, 8)
    found = list(StoredBatches(store, (HOOK,), (start, stop), size, limits(store)))
    assert sum(len(x) for x, _ in found) == stop - start
    masked = 0
    for number, (x, mask) in enumerate(found):
        rows = (start + number * size, min(start + (number + 1) * size, stop))
        assert torch.equal(x, store.read(HOOK, *rows))
        assert mask is not None
        label, meta = store.read(OTHER, *rows), store.read_rows_meta(*rows)
        for place in itertools.product(*(range(n) for n in mask.shape)):
            massive = is_massive(label[place])
            masked += massive
            assert bool(mask[place]) == (bool(meta.mask[place]) and not massive)
    assert masked > 2
    plain = StoredBatches(store, (HOOK,), (start, stop), size)
    assert all(torch.equal(mask, meta_of(store, plain, i)) for i, (_, mask) in enumerate(plain) if mask is not None)


def meta_of(store: ActivationStore, batches: StoredBatches, number: int) -> Tensor:
    """The store's own mask of a batch."""
    start = batches.rows[0] + number * batches.batch_size
    return store.read_rows_meta(start, min(start + batches.batch_size, batches.rows[1])).mask
