"""Activations in one byte a number: eight bits of (x - centre) / (spread x scale of the token), rounded to the nearest.

Centre and spread are of a dimension, mean and standard deviation in the rows that are measured; massive tokens do not count.
Dimensions differ by factors of a hundred, and some lie far from zero all the time: with a scale of the token alone, or of a
block of dimensions, those few would take the bits of all others (benchmarks/results/store.md).

A number is off by at most spread x scale / 2: about 6e-5 of the variance in every dimension of a residual stream, and a few
hundredths of the norm of a massive token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pipeline.activations.codecs.interface import ROWS, ElementType, Part, StorageCodec
from pipeline.activations.codecs.plain import FLOAT32

SCALE, DIMENSIONS = "scale", "dimensions"
MOST = 127
MASSIVE_FACTOR = 10.0  # times the median norm, as in pipeline/norms
LEAST_SPREAD = 1 / 16  # of the median one: a dimension that hardly varied in the measured rows may vary later
BLOCK_NUMBERS = 2**17  # taken at once on the CPU, so that the steps meet them in the cache


def _blocks(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors [..., width] of the same rows, a block of rows at a time; on a GPU all at once."""
    flat = [x.flatten(0, -2) for x in rows]
    n, width = flat[0].shape
    step = max(BLOCK_NUMBERS // width, 1) if flat[0].device.type == "cpu" else max(n, 1)
    return zip(*(x.split(step) for x in flat), strict=True)


class Int8Codec(StorageCodec):
    """The numbers, a scale for each token (0 for one that is the centre), and centre and spread of each dimension."""

    dtype = torch.float32
    parts: Mapping[str, Part] = {
        ROWS: Part(ElementType(torch.int8, "int8", "|i1", 0)),
        SCALE: FLOAT32.parts[ROWS]._replace(width=1),
        DIMENSIONS: FLOAT32.parts[ROWS]._replace(rows=2),
    }

    def measure(self, rows: Tensor) -> dict[str, Tensor]:
        x = rows.flatten(0, -2).float()
        norms = torch.linalg.vector_norm(x, dim=-1)
        x, norms = x[norms.isfinite()], norms[norms.isfinite()]
        if len(x):
            x = x[norms <= MASSIVE_FACTOR * norms.median()]
        else:
            x = rows.new_zeros(1, rows.shape[-1], dtype=torch.float32)
        variance, centre = torch.var_mean(x, dim=0, correction=0)
        spread = variance.sqrt()
        varying = spread[spread > 0]
        spread = spread.clamp_min(LEAST_SPREAD * varying.median()) if len(varying) else torch.ones_like(spread)
        return {DIMENSIONS: torch.stack([centre, spread]).cpu()}

    def encode(self, rows: Tensor, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        centre, spread = shared[DIMENSIONS].to(rows.device)
        found = torch.empty(rows.shape, dtype=torch.int8, device=rows.device)
        scale = torch.empty((*rows.shape[:-1], 1), device=rows.device)
        for some, into, by in _blocks(rows, found, scale):
            x = (some - centre).div_(spread)
            torch.div(x.abs().amax(-1, keepdim=True), MOST, out=by)
            into.copy_(x.div_(by.clamp_min(torch.finfo(torch.float32).tiny)).round_())
        return {ROWS: found, SCALE: scale}

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        centre, spread = parts[DIMENSIONS]
        found = torch.empty(parts[ROWS].shape, dtype=dtype, device=centre.device) if out is None else out
        for some, by, into in _blocks(parts[ROWS], parts[SCALE], found):
            x = into if dtype == torch.float32 else torch.empty(some.shape, device=centre.device)
            torch.addcmul(centre, x.copy_(some).mul_(by), spread, out=x)
            if x is not into:
                into.copy_(x)
        return found


INT8 = Int8Codec()
