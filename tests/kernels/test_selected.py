"""The entry-wise kernels against plain torch: odd sizes, k = 1, k = F, empty rows, repeated runs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.kernels import reference
from pipeline.kernels.dispatch import entries_pay
from pipeline.kernels.selected import selected_decode, selected_linear
from pipeline.seeding import generator


def places(n: int, f: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Random places by token (some tokens may have none), and where each token's begin."""
    chosen = torch.rand(n, f, generator=generator(seed, "places")) < share
    flat = chosen.reshape(-1).nonzero().squeeze(1)
    offsets = torch.tensor([int((flat < b * f).sum()) for b in range(n)], dtype=torch.int64)
    return flat, offsets


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
    flat, offsets = places(n, f, share, seed)
    results = []
    for own in (True, False):
        x, W, b = tensors(seed, (n, d), (d, f), (f,))
        out = selected_linear(x, W, b, x @ W + b, flat, offsets) if own else reference.selected_linear(x, W, b, flat)
        (out * torch.arange(1.0, len(flat) + 1)).sum().backward()
        results.append([out, x.grad, W.grad, b.grad])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@property_
@given(**sizes)
def test_decode_equals_the_reference(n: int, d: int, f: int, share: float, seed: int) -> None:
    flat, offsets = places(n, f, share, seed)
    results = []
    for own in (True, False):
        values, W = tensors(seed, (len(flat),), (f, d))
        out = selected_decode(values, flat, offsets, W) if own else reference.selected_decode(values, flat, n, W)
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
    flat, offsets = places(n, f, share, seed)
    x, W, b, W_D = tensors(seed, (n, d), (d, f), (f,), (f, d))
    (values,) = tensors(seed + 1, (len(flat),))
    if not len(flat):
        return  # gradcheck refuses what has no entry; the comparison with the reference covers it
    assert torch.autograd.gradcheck(lambda x, W, b: selected_linear(x, W, b, x @ W + b, flat, offsets), (x, W, b))
    assert torch.autograd.gradcheck(lambda v, W: selected_decode(v, flat, offsets, W), (values, W_D))


def test_one_after_the_other_as_a_dictionary_uses_them() -> None:
    """Gated encoder, closed places, decoder."""
    flat, offsets = places(4, 6, 0.5, 0)
    x, W, b, W_G, b_G, W_D = tensors(0, (4, 3), (3, 6), (6,), (3, 6), (6,), (6, 3))
    is_open = torch.arange(len(flat)) % 3 > 0

    def reconstruct(*leaves: Tensor) -> Tensor:
        x, W, b, W_G, b_G, W_D = leaves
        linear = selected_linear(x, W, b, x @ W + b, flat, offsets)
        gate = selected_linear(x, W_G, b_G, x @ W_G + b_G, flat, offsets)
        return selected_decode(torch.where(is_open, linear * gate.sigmoid(), 0.0), flat, offsets, W_D)

    assert torch.autograd.gradcheck(reconstruct, (x, W, b, W_G, b_G, W_D))


@pytest.mark.parametrize("wanted", ["x", "W", "b"])
def test_a_single_gradient_can_be_asked_for(wanted: str) -> None:
    flat, offsets = places(5, 7, 0.4, 2)
    found = []
    for own in (True, False):
        leaves = {name: t.detach() for name, t in zip("xWb", tensors(2, (5, 3), (3, 7), (7,)), strict=True)}
        leaves[wanted].requires_grad_()
        x, W, b = leaves["x"], leaves["W"], leaves["b"]
        out = selected_linear(x, W, b, x @ W + b, flat, offsets) if own else reference.selected_linear(x, W, b, flat)
        out.square().sum().backward()
        found.append(leaves[wanted].grad)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_gradients_go_by_the_entries_and_not_by_the_dense_output() -> None:
    flat, offsets = places(5, 7, 0.4, 3)
    x, W, b = tensors(3, (5, 3), (3, 7), (7,))
    (out,) = tensors(4, (5, 7))
    selected_linear(x, W, b, out, flat, offsets).sum().backward()
    assert out.grad is None
    untouched = sorted(set(range(7)) - set((flat % 7).tolist()))
    assert W.grad is not None
    assert b.grad is not None
    assert b.grad.tolist() == [float(sum(c == i for c in (flat % 7).tolist())) for i in range(7)]
    assert (W.grad[:, untouched] == 0).all()


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_get_gradients_in_their_own_dtype(low: torch.dtype) -> None:
    """Autocast hands over a low-precision product and values; sums are made in the weights' float32."""
    flat, offsets = places(6, 9, 0.5, 5)
    x, W, b, W_D = tensors(5, (6, 4), (4, 9), (9,), (9, 4), dtype=torch.float32)
    x_low = x.detach().to(low).requires_grad_()
    values = selected_linear(x_low, W, b, (x_low.float() @ W + b).to(low), flat, offsets)
    x_hat = selected_decode(values, flat, offsets, W_D)
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
            flat, offsets = places(256, 512, 0.03, 1)
            values = selected_linear(x, W, b, x @ W + b, flat, offsets)
            selected_decode(values, flat, offsets, W_D).square().sum().backward()
            runs.append([W.grad, b.grad, W_D.grad, x.grad])
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True) if a is not None and b is not None)
    finally:
        torch.set_num_threads(before)


def test_dispatch_goes_by_the_measured_crossover() -> None:
    assert entries_pay("cpu", torch.float32, 24, 2048)
    assert not entries_pay("cpu", torch.float32, 1024, 2048)
    assert not entries_pay("cpu", torch.bfloat16, 24, 2048)
    assert not entries_pay("cuda", torch.float32, 24, 2048)


def test_the_benchmark_runs() -> None:
    from benchmarks.dictionary_step import Size, measure

    for act_fn in ("topk", "batchtopk"):
        assert measure(Size(8, 64, 16), act_fn, 2, rounds=1).entries_ms > 0
