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


@settings(max_examples=60, deadline=None)
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


@settings(max_examples=60, deadline=None)
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


def test_gradcheck() -> None:
    flat, offsets = places(4, 6, 0.4, 0)
    x, W, b = tensors(0, (4, 3), (3, 6), (6,))
    assert torch.autograd.gradcheck(lambda x, W, b: selected_linear(x, W, b, x @ W + b, flat, offsets), (x, W, b))
    values, W_D = tensors(1, (len(flat),), (6, 3))
    assert torch.autograd.gradcheck(lambda v, W: selected_decode(v, flat, offsets, W), (values, W_D))


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
