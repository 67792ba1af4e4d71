"""Adam on the device, in one pass over a weight: moments, update, and its copy in the dtype of the products."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _adam(
    weight, gradient, first, second, copy, scalars, skip, n, beta1, beta2, eps,
    HAS_COPY: tl.constexpr, HAS_SKIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    wanted = True
    if HAS_SKIP:
        wanted = tl.load(skip) == 0.0
    if wanted:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        w = tl.load(weight + at, mask=inside)
        g = tl.load(gradient + at, mask=inside).to(tl.float32)
        m = tl.load(first + at, mask=inside)
        v = tl.load(second + at, mask=inside)
        m = m + (1.0 - beta1) * (g - m)
        v = beta2 * v + (1.0 - beta2) * g * g
        step, root = tl.load(scalars), tl.load(scalars + 1)
        w = w - step * m / (tl.sqrt(v) / root + eps)
        tl.store(weight + at, w, mask=inside)
        tl.store(first + at, m, mask=inside)
        tl.store(second + at, v, mask=inside)
        if HAS_COPY:
            tl.store(copy + at, w.to(copy.dtype.element_ty), mask=inside)


def bias_corrections(lr: Tensor, step: Tensor, betas: tuple[float, float]) -> Tensor:
    """float32 [2] for :func:`adam_`: lr / (1 - beta1^t) and sqrt(1 - beta2^t); lr and t scalars on the device."""
    t = step.double()
    return torch.stack([lr.double() / (1 - betas[0] ** t), (1 - betas[1] ** t).sqrt()]).float()


def adam_(
    weight: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    scalars: Tensor,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    copy: Tensor | None = None,
    skip: Tensor | None = None,
) -> None:
    """w <- w - lr m_hat / (sqrt(v_hat) + eps), in place.

    Args:
        weight, first, second: float32, contiguous, of one shape: the weight and its moments.
        gradient: the same shape, float32 or narrower.
        scalars: as :func:`bias_corrections` gives them.
        copy: the weight in another dtype, rewritten with it; None: there is none.
        skip: float32 scalar on the device, 1 to change nothing; None: update.
    """
    n = weight.numel()
    _adam[(triton.cdiv(n, BLOCK),)](
        weight, gradient, first, second, copy, scalars, skip, n, *betas, eps,
        HAS_COPY=copy is not None, HAS_SKIP=skip is not None, BLOCK=BLOCK,
    )  # fmt: skip
