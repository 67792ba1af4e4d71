"""Every gate against sorting by hand: budgets, ties, masks, odd sizes, dtypes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.activation_functions.interface import (
    GateSettings,
    activation_function,
    activation_function_names,
)
from pipeline.errors import ParamsError
from pipeline.kernels.largest import SAMPLE_FROM
from pipeline.seeding import generator
from tests.activation_functions.cases import ACT_FNS, KINDS, PROPERTY, Case, cases, expected, found, gating_values
from tests.messages import saying

Z = torch.tensor([[0.9, -1.0, 0.2, 0.5], [3.0, 2.0, 1.0, 0.5], [-1.0, -2.0, 0.0, 0.1]])
every_gate = pytest.mark.parametrize("act_fn", ACT_FNS)


def opened(name: str, z: Tensor, k: int = 2, mask: Tensor | None = None) -> Tensor:
    return activation_function(name).support(z, GateSettings(k, mask))


def support(act_fn: str, case: Case) -> Tensor:
    return activation_function(act_fn).support(case.z, case.settings)


# By hand ------------------------------------------------------------------------------------------------------------


def test_three_tokens_by_hand() -> None:
    assert opened("relu", Z).int().tolist() == [[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]
    assert opened("topk", Z).int().tolist() == [[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]]
    assert opened("batchtopk", Z).int().tolist() == [[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]]


def test_three_tokens_of_which_one_is_masked_by_hand() -> None:
    mask = torch.tensor([True, False, True])
    assert opened("relu", Z, mask=mask).int().tolist() == [[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert opened("topk", Z, mask=mask).int().tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert opened("batchtopk", Z, mask=mask).int().tolist() == [[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert opened("batchtopk", Z, k=1, mask=mask).int().tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_what_is_not_a_number_is_open_so_that_the_loss_notices() -> None:
    z = Z.clone()
    z[1, 2] = torch.nan
    settings_ = GateSettings(1, None, torch.zeros(4))
    for name in ACT_FNS:
        function = activation_function(name)
        assert bool(function.support(z, settings_)[1, 2]), name
        assert bool(function.features(z, z, None, settings_)[1, 2].isnan()), name


# Properties ---------------------------------------------------------------------------------------------------------


@every_gate
@PROPERTY
@given(case=cases())
def test_the_support_is_that_of_a_loop_and_within_its_budget(act_fn: str, case: Case) -> None:
    is_open = support(act_fn, case)
    assert is_open.shape == case.z.shape
    assert is_open.dtype == torch.bool
    assert found(act_fn, case, is_open) == expected(act_fn, case)
    by_row = is_open.reshape(-1, case.z.shape[-1])
    assert not by_row[~case.kept].any()
    if act_fn == "topk":
        assert int(by_row.sum(-1).max()) <= case.k
    if act_fn == "batchtopk":
        assert int(by_row.sum()) <= case.k * int(case.kept.sum())


@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk"])
@PROPERTY
@given(case=cases(layers=True))
def test_layers_of_a_token_do_not_compete(act_fn: str, case: Case) -> None:
    is_open = support(act_fn, case)
    assert found(act_fn, case, is_open) == expected(act_fn, case)
    for layer in range(case.z.shape[-2]):
        alone = Case(case.z[..., layer, :], case.k, case.mask, case.t[layer])
        assert torch.equal(support(act_fn, alone), is_open[..., layer, :])


@every_gate
@PROPERTY
@given(case=cases(), loud=st.sampled_from([1e6, -1e6, torch.inf, torch.nan]))
def test_masked_tokens_never_compete(act_fn: str, case: Case, loud: float) -> None:
    function = activation_function(act_fn)
    width = case.z.shape[-1]
    z = torch.where(case.kept[:, None], case.z.reshape(-1, width), loud).reshape(case.z.shape)
    is_open = function.support(z, case.settings)
    quiet = torch.where(case.kept[:, None], case.z.reshape(-1, width), -1.0).reshape(case.z.shape)
    assert found(act_fn, case, is_open) == found(act_fn, case, function.support(quiet, case.settings))
    f = function.features(z, z, None, case.settings).reshape(-1, width)
    assert (f[~case.kept] == 0).all()
    alone = case._replace(z=case.z.reshape(-1, width)[case.kept], mask=None)
    if len(alone.z):
        assert found(act_fn, alone, is_open.reshape(-1, width)[case.kept]) == expected(act_fn, alone)


@every_gate
@PROPERTY
@given(case=cases(), scaled=st.booleans())
def test_a_kept_entry_is_h_with_gradient_one_and_the_rest_are_zero(act_fn: str, case: Case, scaled: bool) -> None:
    g = generator(case.k, "upstream")
    scale = torch.rand(case.z.shape[-1], generator=g, dtype=torch.float64).add(0.5).to(case.z.dtype) if scaled else None
    h = case.z.clone().requires_grad_()
    z = h if scale is None else h * scale
    f = activation_function(act_fn).features(h, z, scale, case.settings)
    is_open = activation_function(act_fn).support(z.detach(), case.settings)
    assert f.dtype == (case.t.dtype if act_fn == "jumprelu" else h.dtype)
    tolerance = 1e-2 if h.dtype == torch.bfloat16 else 1e-6  # jumprelu's h n / n
    torch.testing.assert_close(f.to(h.dtype), torch.where(is_open, h, 0.0), rtol=tolerance, atol=0.0)
    assert (f[~is_open] == 0).all()
    upstream = torch.randn(f.shape, generator=g, dtype=torch.float64).to(f.dtype)
    (grad,) = torch.autograd.grad(f, h, upstream)
    torch.testing.assert_close(grad, torch.where(is_open, upstream, 0.0).to(h.dtype), rtol=tolerance, atol=0.0)


@every_gate
@PROPERTY
@given(case=cases())
def test_the_selection_lists_the_support_by_token(act_fn: str, case: Case) -> None:
    chosen = activation_function(act_fn).selection(case.z, case.settings)
    assert chosen is not None
    places = chosen.flat.tolist()
    assert places == sorted(set(places))
    assert torch.equal(chosen.values, case.z.reshape(-1)[chosen.flat])
    listed = torch.zeros(case.z.numel(), dtype=torch.bool)
    listed[chosen.flat[chosen.active]] = True
    assert torch.equal(listed.reshape(case.z.shape), support(act_fn, case))


@PROPERTY
@given(case=cases())
def test_batchtopk_counts_kept_tokens_only(case: Case) -> None:
    positive = int((case.z.reshape(-1, case.z.shape[-1])[case.kept] > 0).sum())
    assert int(support("batchtopk", case).sum()) == min(case.k * int(case.kept.sum()), positive)


@every_gate
@PROPERTY
@given(case=cases())
def test_the_threshold_parts_active_from_inactive(act_fn: str, case: Case) -> None:
    """Where something is active, an active z is at or above the threshold and an inactive positive one at or below it."""
    is_open = support(act_fn, case)
    smallest = torch.where(is_open, case.z, torch.inf).amin(-1, keepdim=True)
    threshold = activation_function(act_fn).threshold(smallest, case.settings).to(case.t.dtype)
    z, threshold, is_open = (
        tensor.reshape(-1, case.z.shape[-1])[case.kept]
        for tensor in (case.z.to(case.t.dtype), threshold.expand(case.z.shape), is_open)
    )
    assert (z >= threshold)[is_open].all()
    assert (z <= threshold)[~is_open & threshold.isfinite()].all()
    if act_fn in ("topk", "batchtopk"):
        rows_open = is_open.any(-1, keepdim=True) if act_fn == "topk" else is_open.any()
        assert torch.equal(threshold.isfinite(), rows_open.expand(threshold.shape))


# Large batches, of which a sample is looked at first -----------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_large_batch_keeps_its_largest(kind: str, masked: bool) -> None:
    n, f = SAMPLE_FROM // 512 + 3, 512
    g = generator(0, kind)
    z = gating_values(kind, (n, f), g).float()
    mask = torch.rand(n, generator=g) < 0.3 if masked else None
    for k in (1, 7, 400):
        case = Case(z, k, mask, torch.zeros(f))
        is_open = support("batchtopk", case)
        assert found("batchtopk", case, is_open) == expected("batchtopk", case)
        assert not is_open[~case.kept].any()


# The registry -------------------------------------------------------------------------------------------------------


def test_every_registered_gate_is_covered() -> None:
    assert set(activation_function_names()) == {*ACT_FNS, "layertopk", "batchlayertopk"}


def test_unknown_names_list_all_and_the_nearest() -> None:
    with pytest.raises(ParamsError, match=saying("'batchtopk'", "relu, jumprelu, topk, batchtopk, layertopk, batchlayertopk")):
        activation_function("batch_topk")


def test_flags() -> None:
    assert [activation_function(n).budgeted for n in ("relu", "topk", "batchtopk", "jumprelu")] == [False, True, True, False]
    assert [n for n in activation_function_names() if activation_function(n).batch_dependent] == ["batchtopk", "batchlayertopk"]
    assert [n for n in activation_function_names() if activation_function(n).has_threshold] == ["jumprelu"]
