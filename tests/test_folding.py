"""Trained dictionary + norms -> inference dictionary: conversion, folding, keeping, and what is reported."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.store import load_dictionary
from pipeline.errors import DataError, NumericsError, ParamsError
from pipeline.folding import StoredBatches, fold_dictionary, mean_l0
from pipeline.seeding import generator
from tests.dictionaries.make import filled, inputs
from tests.messages import saying

NORMS = {"input": {"mean_norm": 12.0, "mean_square": 150.0, "d": 6}}
SCALE = math.sqrt(6) / 12.0


def batches(n: int = 6, size: int = 300, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [inputs(size, 6, seed=s, dtype=dtype) / SCALE for s in range(n)]


def make(act_fn: str, **config: Any) -> Any:
    return filled(act_fn=act_fn, **{"d_sae": 60, "top_k": 6, "dtype": "float32", **config})


@pytest.mark.parametrize("include_norm", [True, False])
@pytest.mark.parametrize("act_fn", ["batchtopk", "topk"])
def test_conversion_keeps_the_l0_on_rows_it_has_not_seen(act_fn: str, include_norm: bool) -> None:
    dictionary = make(act_fn, sparsity_include_decoder_norm=include_norm)
    report = fold_dictionary(dictionary, NORMS, calibration_batches=batches(), convert_topk=True)
    assert report.dictionary.config.act_fn == "jumprelu"
    assert report.dictionary.config.folded
    assert report.figures["act_fn_before"] == act_fn
    assert report.l0_before == pytest.approx(6)
    assert report.l0_after == pytest.approx(6, rel=0.002)
    assert report.figures["calibration_tokens"] == 1800
    unseen = [(inputs(4000, 6, seed=99, dtype=torch.float32) / SCALE, None)]
    assert mean_l0(report.dictionary, unseen)[0] == pytest.approx(6, rel=0.02)


def test_the_threshold_is_one_value_in_gating_units() -> None:
    dictionary = make("batchtopk")
    converted = dictionary.to_jumprelu([x * SCALE for x in batches()]).requires_grad_(False)
    report = fold_dictionary(dictionary, NORMS, calibration_batches=batches())
    assert report.threshold == pytest.approx(float(converted.thresholds()[0]), rel=1e-6)
    assert float(converted.thresholds().std()) == pytest.approx(0, abs=1e-7)
    x = batches()[0] * SCALE
    codes = converted.codes(x)
    assert torch.equal(codes.f != 0, codes.z > float(converted.thresholds()[0]))


def test_a_folded_topk_dictionary_with_a_gate_scale_converts_too() -> None:
    folded = make("topk", sparsity_include_decoder_norm=False).fold(NORMS)
    assert folded.gate_scale is not None
    converted, calibration = folded.calibrated(batches())
    assert converted.gate_scale is None
    assert calibration.l0_after == pytest.approx(6, rel=0.002)
    assert mean_l0(converted, [(x, None) for x in batches()])[0] == pytest.approx(6, rel=0.002)


def test_topk_stays_topk_unless_asked() -> None:
    report = fold_dictionary(make("topk"), NORMS, calibration_batches=batches())
    assert report.dictionary.config.act_fn == "topk"
    assert report.threshold is None
    assert report.l0_after == report.l0_before == pytest.approx(6)


@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk"])
def test_the_folded_dictionary_serves_raw_activations(act_fn: str) -> None:
    dictionary = make(act_fn)
    report = fold_dictionary(dictionary, NORMS, calibration_batches=batches())
    x = batches()[0]
    wanted = dictionary(x * SCALE) / SCALE
    torch.testing.assert_close(report.dictionary(x), wanted, rtol=1e-4, atol=1e-4)
    assert 0 <= float(report.figures["relative_error"]) <= 1e-9
    assert report.dictionary.config.norms == {"input": NORMS["input"]}
    assert report.dictionary.config.provenance["fold"] == report.figures


@pytest.mark.parametrize("norm", ["dataset-wise", "token-wise", "batch-wise"])
def test_keep_carries_the_norms_and_changes_no_weight(norm: str, tmp_path: Path) -> None:
    dictionary = make("topk", norm_activation=norm)
    report = fold_dictionary(dictionary, NORMS, mode="keep", calibration_batches=batches())
    report.dictionary.save(tmp_path / "d")
    loaded = load_dictionary(tmp_path / "d")
    assert not loaded.config.folded
    assert loaded.config.norm_activation == norm
    assert loaded.config.norms == {"input": NORMS["input"]}
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in dictionary.state_dict().items())
    assert report.l0_after == report.l0_before


@pytest.mark.parametrize("norm", ["dataset-wise", "token-wise", "batch-wise"])
def test_keep_still_replaces_a_gate_that_depends_on_the_batch(norm: str) -> None:
    report = fold_dictionary(make("batchtopk", norm_activation=norm), NORMS, mode="keep", calibration_batches=batches())
    assert report.dictionary.config.act_fn == "jumprelu"
    assert report.l0_after == pytest.approx(6, rel=0.002)


def test_an_unconverted_batchtopk_folds_exactly_on_the_same_batch() -> None:
    dictionary = make("batchtopk", dtype="float64")
    x = batches(1, dtype=torch.float64)[0]
    folded = dictionary.fold(NORMS)
    torch.testing.assert_close(folded(x), dictionary(x * SCALE) / SCALE, rtol=1e-9, atol=1e-9)
    assert folded.is_batch_dependent


def test_folding_goes_through_an_iterator_once_and_a_mask() -> None:
    mask = torch.arange(300) % 2 == 0
    pairs = [(torch.where(mask[:, None], x, 1e3 * x), mask) for x in batches()]
    masked = fold_dictionary(make("batchtopk"), NORMS, calibration_batches=iter(pairs))
    plain = fold_dictionary(make("batchtopk"), NORMS, calibration_batches=[x[mask] for x in batches()])
    assert masked.threshold == pytest.approx(plain.threshold, rel=1e-5)
    assert masked.figures["calibration_tokens"] == 900


def test_without_calibration_rows_nothing_is_measured() -> None:
    report = fold_dictionary(make("relu"), NORMS)
    assert report.l0_before is None
    assert set(report.figures) == {"mode", "feature_units", "act_fn_before", "act_fn_after"}


def test_refusals() -> None:
    with pytest.raises(ParamsError, match=saying("fold.calibration_tokens:", "batchtopk")):
        fold_dictionary(make("batchtopk"), NORMS)
    with pytest.raises(ParamsError, match=saying("dictionary.norm_activation:", "token-wise", "fold.mode: keep")):
        fold_dictionary(make("topk", norm_activation="token-wise"), NORMS)
    with pytest.raises(ParamsError, match=saying("fold.mode:", "'keeep'", "'keep'")):
        fold_dictionary(make("topk"), NORMS, mode="keeep")
    with pytest.raises(DataError, match=saying("norms:", "unknown", "'input'", "elsewhere")):
        fold_dictionary(make("topk"), {"elsewhere": 3.0})
    with pytest.raises(ParamsError, match="folded already"):
        fold_dictionary(make("topk").fold(NORMS), NORMS)
    with pytest.raises(ParamsError, match=saying("dictionary.act_fn:", "topk", "'relu'")):
        make("relu").to_jumprelu(batches())
    dead = make("batchtopk")
    with torch.no_grad():
        dead.b_E.fill_(-1e6)
    with pytest.raises(NumericsError, match=saying("calibration:", "1,800", "before 0.0", 6, "after 0.0")):
        fold_dictionary(dead, NORMS, calibration_batches=batches())


class Store:
    """Rows of two hook points, as an activation store gives them."""

    def __init__(self, *shape: int) -> None:
        self.values = {hook: torch.randn(shape, generator=generator(0, hook)) for hook in ("a", "b")}
        self.mask = torch.rand(shape[:-1], generator=generator(0, "mask")) < 0.7

    def read(self, hook_point: str, start: int, stop: int) -> Tensor:
        return self.values[hook_point][start:stop].to(torch.bfloat16)

    def read_together(self, hook_points: Iterable[str], start: int, stop: int) -> dict[str, Tensor]:
        return {hook: self.read(hook, start, stop) for hook in hook_points}

    def read_rows_meta(self, start: int, stop: int) -> Any:
        return SimpleNamespace(mask=self.mask[start:stop])


def test_stored_batches_are_the_asked_rows_in_order_at_every_pass() -> None:
    store = Store(50, 6)
    stored = StoredBatches(store, ("a",), (20, 50), 8)
    for _ in range(2):
        found = list(stored)
        assert [len(x) for x, _ in found] == [8, 8, 8, 6]
        assert torch.equal(torch.cat([x for x, _ in found]), store.read("a", 20, 50))
        assert torch.equal(torch.cat([m for _, m in found if m is not None]), store.mask[20:50])


def test_stored_batches_of_contexts_and_of_several_hook_points() -> None:
    store = Store(10, 4, 6)
    x, mask = next(iter(StoredBatches(store, ("a",), (0, 10), 3)))
    assert x.shape == (3, 4, 6)
    assert mask is not None
    assert mask.shape == (3, 4)
    x, mask = next(iter(StoredBatches(store, ("a", "b"), (0, 10), 3)))
    assert x.shape == (3, 4, 2, 6)
    assert torch.equal(x[..., 1, :], store.read("b", 0, 3))
    report = fold_dictionary(
        make("topk", hook_point_in="a"), {"a": 12.0}, calibration_batches=StoredBatches(store, ("a",), (0, 10), 3)
    )
    assert report.figures["calibration_tokens"] == int(store.mask.sum())


def test_a_fold_that_is_not_the_trained_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = make("relu")
    exact = type(dictionary).scale_activations_

    def wrong(self: Any, a: tuple[float, ...], b: tuple[float, ...]) -> None:
        exact(self, a, b)
        self.W_D.mul_(1 + 1e-6)

    monkeypatch.setattr(type(dictionary), "scale_activations_", wrong)
    with pytest.raises(NumericsError, match=saying("fold:", "1.00e-06", "1e-09")):
        fold_dictionary(dictionary, NORMS, calibration_batches=batches())


def test_l0_is_that_of_the_trained_gate_and_of_the_served_one() -> None:
    """A gate that serves another L0 than it was trained with: thresholds set to a target."""
    dictionary = make("jumprelu")
    report = fold_dictionary(dictionary, NORMS, calibration_batches=batches(), target_l0=3.0)
    scaled = [(x * SCALE, None) for x in batches()]
    assert report.l0_before == pytest.approx(mean_l0(dictionary, scaled)[0])
    assert report.l0_after == pytest.approx(3.0, rel=0.01)
    assert abs(report.l0_before - report.l0_after) > 1.0
