"""relu, topk and batchtopk against sorting by hand: budgets, ties, masks, odd sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.activation_functions.batchtopk import SAMPLE_FROM, largest
from pipeline.activation_functions.registry import (
    GateSettings,
    activation_function,
    activation_function_names,
    register,
)
from pipeline.errors import ParamsError
from pipeline.seeding import generator

Z = torch.tensor([[0.9, -1.0, 0.2, 0.5], [3.0, 2.0, 1.0, 0.5], [-1.0, -2.0, 0.0, 0.1]])


def opened(name: str, z: Tensor, k: int = 2, mask: Tensor | None = None) -> Tensor:
    return activation_function(name).support(z, GateSettings(k, mask))


def test_relu_keeps_what_is_positive() -> None:
    assert opened("relu", Z).int().tolist() == [[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]


def test_topk_keeps_the_largest_positive_of_each_token() -> None:
    assert opened("topk", Z).int().tolist() == [[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]]


def test_batchtopk_keeps_the_largest_positive_of_the_batch() -> None:
    assert opened("batchtopk", Z).int().tolist() == [[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]]


def test_masked_tokens_take_no_part() -> None:
    mask = torch.tensor([True, False, True])
    assert opened("relu", Z, mask=mask).int().tolist() == [[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert opened("topk", Z, mask=mask).int().tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert opened("batchtopk", Z, mask=mask).int().tolist() == [[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert opened("batchtopk", Z, k=1, mask=mask).int().tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_ties_never_exceed_the_budget(name: str) -> None:
    z = torch.ones(5, 7)
    assert int(opened(name, z, k=3).sum()) == 15
    mask = torch.tensor([True, True, False, True, False])
    chosen = opened(name, z, k=3, mask=mask)
    assert int(chosen.sum()) == 9
    assert not chosen[~mask].any()


def test_nothing_positive_opens_nothing() -> None:
    for name in ("relu", "topk", "batchtopk"):
        assert not opened(name, torch.tensor([[-1.0, 0.0], [0.0, -3.0]])).any()
    none_kept = torch.zeros(3, dtype=torch.bool)
    for name in ("relu", "topk", "batchtopk"):
        assert not opened(name, Z, mask=none_kept).any()


def test_k_may_reach_the_number_of_features_and_beyond() -> None:
    for name in ("topk", "batchtopk"):
        for k in (4, 9):
            assert torch.equal(opened(name, Z, k=k), Z > 0)


def test_what_is_not_a_number_is_open_so_that_the_loss_notices() -> None:
    z = Z.clone()
    z[1, 2] = torch.nan
    settings_ = GateSettings(1, None, torch.zeros(4))
    for name in activation_function_names():
        function = activation_function(name)
        assert bool(function.support(z, settings_)[1, 2]), name
        assert bool(function.features(z, z, None, settings_)[1, 2].isnan()), name


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 9),
    f=st.integers(1, 13),
    k=st.integers(1, 15),
    seed=st.integers(0, 1000),
    ties=st.booleans(),
    masked=st.booleans(),
    dims=st.integers(1, 2),
)
def test_budgeted_gates_equal_sorting(n: int, f: int, k: int, seed: int, ties: bool, masked: bool, dims: int) -> None:
    """Odd sizes, ties, empty rows: the kept values are the largest, whichever of equal ones are taken."""
    g = generator(seed, "gates")
    z = torch.randn(n, f, generator=g)
    z = (z * 2).round() / 2 if ties else z
    mask = torch.rand(n, generator=g) < 0.6 if masked else None
    kept = [b for b in range(n) if mask is None or mask[b]]
    shape = (n, f) if dims == 1 else (n, 1, f)
    given_mask = mask if mask is None or dims == 1 else mask[:, None]
    by_token = opened("topk", z.reshape(shape), k, given_mask).reshape(n, f)
    for b in range(n):
        wanted = sorted((v for v in z[b].tolist() if v > 0), reverse=True)[:k] if b in kept else []
        assert sorted(z[b][by_token[b]].tolist(), reverse=True) == wanted
    by_batch = opened("batchtopk", z.reshape(shape), k, given_mask).reshape(n, f)
    everything = sorted((v for b in kept for v in z[b].tolist() if v > 0), reverse=True)
    assert sorted(z[by_batch].tolist(), reverse=True) == everything[: k * len(kept)]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 9), f=st.integers(1, 13), k=st.integers(1, 15), seed=st.integers(0, 1000))
def test_a_selection_lists_the_support_by_token(n: int, f: int, k: int, seed: int) -> None:
    z = torch.randn(n, f, generator=generator(seed, "selection"))
    for name in ("topk", "batchtopk"):
        function = activation_function(name)
        chosen = function.selection(z, GateSettings(k))
        assert chosen is not None
        tokens = (chosen.flat // f).tolist()
        assert tokens == sorted(tokens)
        assert len(set(chosen.flat.tolist())) == len(chosen.flat)
        assert chosen.offsets.tolist() == [sum(t < b for t in tokens) for b in range(n)]
        support = torch.zeros(n * f, dtype=torch.bool)
        support[chosen.flat[chosen.open]] = True
        assert torch.equal(support.reshape(n, f), function.support(z, GateSettings(k)))


@pytest.mark.parametrize("case", ["gaussian", "few-positive", "ties", "one-token-has-all", "one-feature-has-all"])
def test_the_largest_of_many_are_found_whatever_the_sample_says(case: str) -> None:
    n, f = SAMPLE_FROM // 512 + 3, 512
    z = torch.randn(n, f, generator=generator(0, case))
    if case == "few-positive":
        z = z - 6
    elif case == "ties":
        z = z.round()
    elif case == "one-token-has-all":
        z[7] += 100
    elif case == "one-feature-has-all":
        z[:, 0] += 100
    for k in (1, 7, 400):
        values, index = largest(z.reshape(-1), k * n, f)
        assert torch.equal(values, z.reshape(-1).topk(k * n).values)
        assert torch.equal(z.reshape(-1)[index], values)
        assert len(index.unique()) == k * n


def test_the_gradient_of_an_open_entry_is_one() -> None:
    h = Z.clone().requires_grad_()
    for name in ("relu", "topk", "batchtopk"):
        h.grad = None
        activation_function(name).features(h, h * 3, torch.tensor(3.0), GateSettings(2)).sum().backward()
        assert h.grad is not None
        assert torch.equal(h.grad, opened(name, Z).float())


def test_unknown_names_list_all_and_the_nearest() -> None:
    with pytest.raises(ParamsError, match=r"did you mean 'batchtopk'\? \(known: batchtopk, jumprelu, relu, topk"):
        activation_function("batch_topk")


def test_a_name_is_registered_once() -> None:
    function = type(activation_function("relu"))
    with pytest.raises(ParamsError, match="'relu' is registered twice"):
        register("relu")(function)


def test_flags() -> None:
    assert [activation_function(n).budgeted for n in ("relu", "topk", "batchtopk", "jumprelu")] == [False, True, True, False]
    assert [n for n in activation_function_names() if activation_function(n).batch_dependent] == ["batchtopk"]
    assert [n for n in activation_function_names() if activation_function(n).has_threshold] == ["jumprelu"]
