"""The entry-wise kernels against plain torch: odd sizes, k = 1, k = F, empty rows, repeated runs."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.kernels import reference
from pipeline.kernels.cpu import CpuEntries
from pipeline.kernels.entries import Places
from pipeline.kernels.selected import selected_decode, selected_linear
from pipeline.seeding import generator


def places(n: int, f: int, share: float, seed: int) -> tuple[Tensor, Places]:
    """Random places by token (some tokens may have none), flat and by row and column."""
    chosen = torch.rand(n, f, generator=generator(seed, "places")) < share
    flat = chosen.reshape(-1).nonzero().squeeze(1)
    return flat, Places(flat // f, flat % f, n, f, CpuEntries())


def linear(x: Tensor, W: Tensor, b: Tensor, flat: Tensor, at: Places) -> Tensor:
    """selected_linear of values that are taken from the dense product."""
    return selected_linear(x, W, b, (x @ W + b).reshape(-1)[flat], at)


def tensors(seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = generator(seed, "tensors")
    return [torch.randn(shape, generator=g, dtype=dtype).requires_grad_() for shape in shapes]


sizes = {
    "n": st.integers(1, 7),
    "d": st.integers(1, 9),
    "f": st.integers(1, 11),
    "share": st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    "seed": st.integers(0, 10_000),
}
property_ = settings(max_examples=60, deadline=None, derandomize=True)


@property_
@given(**sizes)
def test_linear_equals_the_reference(n: int, d: int, f: int, share: float, seed: int) -> None:
    flat, at = places(n, f, share, seed)
    results = []
    for own in (True, False):
        x, W, b = tensors(seed, (n, d), (d, f), (f,))
        out = linear(x, W, b, flat, at) if own else reference.selected_linear(x, W, b, flat)
        (out * torch.arange(1.0, len(flat) + 1)).sum().backward()
        results.append([out, x.grad, W.grad, b.grad])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@property_
@given(**sizes)
def test_decode_equals_the_reference(n: int, d: int, f: int, share: float, seed: int) -> None:
    flat, at = places(n, f, share, seed)
    results = []
    for own in (True, False):
        values, W = tensors(seed, (len(flat),), (f, d))
        out = selected_decode(values, W, at) if own else reference.selected_decode(values, flat, n, W)
        out.square().sum().backward()
        results.append([out, values.grad, W.grad])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 4),
    d=st.integers(1, 3),
    f=st.integers(1, 6),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_gradients_equal_finite_differences(n: int, d: int, f: int, share: float, seed: int) -> None:
    flat, at = places(n, f, share, seed)
    x, W, b, W_D = tensors(seed, (n, d), (d, f), (f,), (f, d))
    (values,) = tensors(seed + 1, (len(flat),))
    if not len(flat):
        return  # gradcheck refuses what has no entry; the comparison with the reference covers it
    assert torch.autograd.gradcheck(lambda x, W, b: linear(x, W, b, flat, at), (x, W, b))
    assert torch.autograd.gradcheck(lambda v, W: selected_decode(v, W, at), (values, W_D))


def test_one_after_the_other_as_a_dictionary_uses_them() -> None:
    """Gated encoder, closed places, decoder."""
    flat, at = places(4, 6, 0.5, 0)
    x, W, b, W_G, b_G, W_D = tensors(0, (4, 3), (3, 6), (6,), (3, 6), (6,), (6, 3))
    is_open = torch.arange(len(flat)) % 3 > 0

    def reconstruct(*leaves: Tensor) -> Tensor:
        x, W, b, W_G, b_G, W_D = leaves
        branch = linear(x, W, b, flat, at)
        gate = linear(x, W_G, b_G, flat, at)
        return selected_decode(torch.where(is_open, branch * gate.sigmoid(), 0.0), W_D, at)

    assert torch.autograd.gradcheck(reconstruct, (x, W, b, W_G, b_G, W_D))


@pytest.mark.parametrize("wanted", ["x", "W", "b"])
def test_a_single_gradient_can_be_asked_for(wanted: str) -> None:
    flat, at = places(5, 7, 0.4, 2)
    found = []
    for own in (True, False):
        leaves = {name: t.detach() for name, t in zip("xWb", tensors(2, (5, 3), (3, 7), (7,)), strict=True)}
        leaves[wanted].requires_grad_()
        x, W, b = leaves["x"], leaves["W"], leaves["b"]
        out = linear(x, W, b, flat, at) if own else reference.selected_linear(x, W, b, flat)
        out.square().sum().backward()
        found.append(leaves[wanted].grad)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_gradients_go_by_the_places_and_not_by_the_values() -> None:
    flat, at = places(5, 7, 0.4, 3)
    x, W, b = tensors(3, (5, 3), (3, 7), (7,))
    (values,) = tensors(4, (len(flat),))
    selected_linear(x, W, b, values, at).sum().backward()
    assert values.grad is None
    untouched = sorted(set(range(7)) - set((flat % 7).tolist()))
    assert W.grad is not None
    assert b.grad is not None
    assert b.grad.tolist() == [float(sum(c == i for c in (flat % 7).tolist())) for i in range(7)]
    assert (W.grad[:, untouched] == 0).all()


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_get_gradients_in_their_own_dtype(low: torch.dtype) -> None:
    """Autocast hands over a low-precision product and values; sums are made in the weights' float32."""
    flat, at = places(6, 9, 0.5, 5)
    x, W, b, W_D = tensors(5, (6, 4), (4, 9), (9,), (9, 4), dtype=torch.float32)
    x_low = x.detach().to(low).requires_grad_()
    values = selected_linear(x_low, W, b, (x_low.float() @ W + b).to(low).reshape(-1)[flat], at)
    x_hat = selected_decode(values, W_D, at)
    assert (values.dtype, x_hat.dtype) == (low, torch.float32)
    x_hat.sum().backward()
    assert x_low.grad is not None
    assert (x_low.grad.dtype, W.grad.dtype, W_D.grad.dtype) == (low, torch.float32, torch.float32)  # type: ignore[union-attr]
    wide = x_low.detach().double().requires_grad_()
    W_wide, b_wide = W.detach().double().requires_grad_(), b.detach().double()
    by_reference = reference.selected_linear(wide, W_wide, b_wide, flat)
    reference.selected_decode(by_reference, flat, 6, W_D.detach().double()).sum().backward()
    rounding = float(torch.finfo(low).eps)
    torch.testing.assert_close(x_low.grad.double(), wide.grad, rtol=4 * rounding, atol=8 * rounding)
    torch.testing.assert_close(W.grad.double(), W_wide.grad, rtol=4 * rounding, atol=8 * rounding)  # type: ignore[union-attr]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_at_every_run(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runs = []
        for _ in range(4):
            x, W, b, W_D = tensors(3, (256, 32), (32, 512), (512,), (512, 32), dtype=torch.float32)
            flat, at = places(256, 512, 0.03, 1)
            values = linear(x, W, b, flat, at)
            selected_decode(values, W_D, at).square().sum().backward()
            runs.append([W.grad, b.grad, W_D.grad, x.grad])
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True) if a is not None and b is not None)
    finally:
        torch.set_num_threads(before)


@property_
@given(n=st.integers(1, 9), f=st.integers(1, 40), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]), seed=st.integers(0, 1000))
def test_the_order_by_column(n: int, f: int, share: float, seed: int) -> None:
    _, at = places(n, f, share, seed)
    order, starts = at.by_column
    columns = at.columns.tolist()
    assert order.tolist() == sorted(range(len(columns)), key=columns.__getitem__)  # stable: by row within a column
    assert starts.tolist() == [sum(c < column for c in columns) for column in range(f)]
    assert at.row_starts.tolist() == [sum(r < row for r in at.rows.tolist()) for row in range(n + 1)]


def test_many_columns_need_wider_keys() -> None:
    columns = torch.randint(2**28, (1000,), generator=generator(0, "columns"))
    at = Places(torch.arange(1000), columns, 1000, 2**28, CpuEntries())
    with mock.patch.object(torch, "searchsorted", return_value=torch.zeros(1)):  # starts of 2^28 columns are not asked for
        order, _ = at.by_column
    assert torch.equal(order, columns.sort(stable=True).indices)


def test_the_benchmark_runs() -> None:
    from benchmarks.dictionary_step import Size, measure

    for act_fn in ("topk", "batchtopk"):
        assert measure(Size(8, 64, 16), act_fn, 2, rounds=1).entries_ms > 0
