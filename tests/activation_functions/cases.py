"""Gating values of every awkward shape for property tests, and what each gate keeps of them, by loops."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.activation_functions.interface import GateSettings
from pipeline.seeding import generator

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)
ACT_FNS = ("relu", "jumprelu", "topk", "batchtopk")
KINDS = ("gaussian", "ties", "all-equal", "all-negative", "zeros", "few-positive", "one-token-has-all", "one-feature-has-all")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class Case(NamedTuple):
    """z [*tokens, F] (or [*tokens, L, F]), its k, mask [*tokens] or None, and log-thresholds [F] (or [L, F])."""

    z: Tensor
    k: int
    mask: Tensor | None
    t: Tensor

    @property
    def settings(self) -> GateSettings:
        return GateSettings(self.k, self.mask, self.t)

    @property
    def kept(self) -> Tensor:
        """The mask over the rows of z.reshape(-1, F), bool."""
        lead = self.z.shape[:-1]
        mask = torch.ones(lead, dtype=torch.bool) if self.mask is None else self.mask
        return mask.reshape(*mask.shape, *(1,) * (len(lead) - mask.ndim)).expand(lead).reshape(-1)


def gating_values(kind: str, shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """float64 [*shape]."""
    z = torch.randn(shape, generator=g, dtype=torch.float64)
    rows = z.reshape(-1, shape[-1])
    if kind == "ties":
        z = (z * 2).round() / 2
    elif kind == "all-equal":
        z = torch.full_like(z, 1.5)
    elif kind == "all-negative":
        z = -z.abs() - 0.01
    elif kind == "zeros":
        z = z * (torch.rand(shape, generator=g) < 0.2)
    elif kind == "few-positive":
        z = z - 2
    elif kind == "one-token-has-all":
        rows[len(rows) // 2] += 100
    elif kind == "one-feature-has-all":
        rows[:, shape[-1] // 2] += 100
    return z


@st.composite
def cases(draw: st.DrawFn, layers: bool = False) -> Case:
    tokens = draw(st.sampled_from([(1,), (2,), (5,), (9,), (2, 3), (3, 1), (1, 2, 2)]))
    width = draw(st.integers(1, 13))
    shape = (draw(st.integers(1, 3)), width) if layers else (width,)
    g = generator(draw(st.integers(0, 1000)), "cases")
    z = gating_values(draw(st.sampled_from(KINDS)), (*tokens, *shape), g).to(draw(st.sampled_from(DTYPES)))
    mask = {
        "none": None,
        "random": torch.rand(tokens, generator=g) < 0.6,
        "nothing-kept": torch.zeros(tokens, dtype=torch.bool),
        "all-kept": torch.ones(tokens, dtype=torch.bool),
    }[draw(st.sampled_from(["none", "random", "random", "nothing-kept", "all-kept"]))]
    k = draw(st.one_of(st.just(1), st.just(width), st.just(width + 3), st.integers(1, width)))
    t = torch.rand(shape, generator=g, dtype=torch.float64) * 2 - 1.5
    return Case(z, k, mask, t if z.dtype == torch.float64 else t.float())


def rows(case: Case) -> list[list[float]]:
    """z by row of one token (and layer); a row whose token is masked is empty."""
    values = case.z.reshape(-1, case.z.shape[-1]).tolist()
    return [row if keep else [] for row, keep in zip(values, case.kept.tolist(), strict=True)]


def expected(act_fn: str, case: Case) -> list[list[float]]:
    """The values that open, in descending order: by row, for batchtopk in one list. Ties make no difference to it."""
    positive = [[v for v in row if v > 0] for row in rows(case)]
    if act_fn == "relu":
        return [sorted(row, reverse=True) for row in positive]
    if act_fn == "jumprelu":
        theta = itertools.cycle(case.t.exp().reshape(-1, case.z.shape[-1]).tolist())
        return [
            sorted((v for v, edge in zip(row, thetas, strict=False) if v > edge), reverse=True)
            for row, thetas in zip(rows(case), theta, strict=False)
        ]
    if act_fn == "topk":
        return [sorted(row, reverse=True)[: case.k] for row in positive]
    everything = sorted(itertools.chain.from_iterable(positive), reverse=True)
    return [everything[: case.k * int(case.kept.sum())]]


def found(act_fn: str, case: Case, support: Tensor) -> list[list[float]]:
    """What `support` opens of z, in the order of `expected`."""
    z, opened = case.z.reshape(-1, case.z.shape[-1]), support.reshape(-1, case.z.shape[-1])
    groups = [(z, opened)] if act_fn == "batchtopk" else zip(z, opened, strict=True)
    return [sorted(values[which].tolist(), reverse=True) for values, which in groups]
