"""Activations that are made of known features, in superposition, correlated and in a hierarchy (SPEC 9).

    x = sum_i a_i w_i + m + e          a_i = 0.5 + Exp(1) where feature i is active, else 0

Directions w_i are unit rows, uniform on the sphere, more of them than dimensions; m is one fixed direction, e Gaussian.
The most frequent features are roots; each further one is the child of a root and is active only where that is. Roots are
correlated by a Gaussian copula of low rank, so that each keeps its own probability.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import ParamsError
from pipeline.seeding import generator

BLOCK = 4096  # rows drawn at once: a shorter draw is the beginning of a longer one
LEAST, EXTRA = 0.5, 1.0  # a coefficient is LEAST plus an exponential of mean EXTRA
CAP = 0.5  # largest probability of a feature


def firing_probabilities(n: int, active: float, exponent: float, cap: float = CAP) -> Tensor:
    """p [n], descending: rank^-exponent scaled to the sum `active`, none above `cap`, which is at least active / n."""
    share = torch.arange(1, n + 1, dtype=torch.float64) ** -exponent
    for capped in range(n):
        factor = float((active - capped * cap) / share[capped:].sum())
        if factor * share[capped] <= cap:
            break
    return (factor * share).clamp_max(cap).float()


class Rows(NamedTuple):
    """Rows with what they are made of.

    Attributes:
        x: activations [n, width], float32.
        a: coefficients [n, features], float32, most of them 0.
    """

    x: Tensor
    a: Tensor


@dataclass(frozen=True)
class SyntheticSet:
    """What is drawn.

    Attributes:
        width: D of the activations.
        features: number of known features G.
        active: mean number of active ones a row.
        exponent: a feature's probability falls with its rank to this power; 0: uniform.
        children: of each root; 0: no hierarchy.
        correlation: share of a root's copula that is common with others, 0 to below 1; 0: independent.
        rank: dimensions of what is common.
        mean_norm: length of what all rows share, in units of the directions.
        noise_norm: root mean square length of a row's noise, in the same units.
        seed: of all that is drawn.
    """

    width: int
    features: int
    active: float
    exponent: float = 0.5
    children: int = 3
    correlation: float = 0.3
    rank: int = 16
    mean_norm: float = 2.0
    noise_norm: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.active <= CAP * self.features:
            raise ParamsError(
                f"ground truth: {self.active:g} active features of {self.features:,}; wanted above 0 and at most "
                f"{CAP * self.features:g}, since none is active on more than {CAP:.0%} of the rows"
            )

    def draw(self) -> Synthetic:
        """The known features."""
        return Synthetic(self)


class Synthetic:
    """One draw of a set.

    Args:
        about: the set.

    Attributes:
        directions: w, unit rows [G, D].
        mean: m [D].
        probabilities: p [G], descending, the share of rows on which each is active.
        parents: int64 [G], the root of each child, -1 of a root.
    """

    def __init__(self, about: SyntheticSet) -> None:
        self.about = about
        shape = (about.features, about.width)
        self.directions = torch.nn.functional.normalize(torch.randn(shape, generator=self._stream("directions")), dim=-1)
        drawn = torch.randn(about.width, generator=self._stream("mean"))
        self.mean = about.mean_norm * drawn / drawn.norm()
        self.probabilities = firing_probabilities(about.features, about.active, about.exponent)
        self.n_roots = math.ceil(about.features / (1 + about.children))
        self.parents = torch.full((about.features,), -1, dtype=torch.int64)
        self.parents[self.n_roots :] = torch.arange(about.features - self.n_roots) % self.n_roots
        loadings = torch.randn(self.n_roots, about.rank, generator=self._stream("loadings"))
        self.loadings = torch.nn.functional.normalize(loadings, dim=-1)

    def _stream(self, *names: str | int) -> torch.Generator:
        return generator(self.about.seed, "ground truth", *names)

    def active(self, n: int, draw: torch.Generator) -> Tensor:
        """Which features are active on `n` rows, bool [n, G]."""
        about, roots = self.about, self.n_roots
        common = torch.randn(n, about.rank, generator=draw) @ self.loadings.T
        own = torch.randn(n, roots, generator=draw)
        g = math.sqrt(about.correlation) * common + math.sqrt(1 - about.correlation) * own
        fires = g > torch.special.ndtri((1 - self.probabilities[:roots]).double()).float()
        parents = self.parents[roots:]
        given = self.probabilities[roots:] / self.probabilities[parents]
        below = (torch.rand(n, len(parents), generator=draw) < given) & fires[:, parents]
        return torch.cat([fires, below], dim=1)

    def blocks(self, n: int, part: str) -> Iterator[Rows]:
        """`n` rows of a part ("train", "held out", ...), BLOCK at a time; parts are independent."""
        about = self.about
        for start in range(0, n, BLOCK):
            draw = self._stream("rows", part, start)
            active = self.active(BLOCK, draw)
            sizes = torch.empty(int(active.sum())).exponential_(1 / EXTRA, generator=draw).add_(LEAST)
            a = torch.zeros(active.shape).masked_scatter_(active, sizes)
            noise = torch.randn(BLOCK, about.width, generator=draw) * (about.noise_norm / math.sqrt(about.width))
            yield Rows((a @ self.directions + self.mean + noise)[: n - start], a[: n - start])

    def to_dict(self) -> dict[str, float]:
        """What was drawn, in figures: the fields of the set, roots, and how much directions overlap."""
        cosines = self.directions @ self.directions.T
        overlap = cosines.fill_diagonal_(-1.0).amax(1).mean()
        fields = {name: float(value) for name, value in dataclasses.asdict(self.about).items()}
        return {**fields, "roots": float(self.n_roots), "largest_overlap": float(overlap)}
