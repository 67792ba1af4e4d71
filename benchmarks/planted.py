"""Planted data: sparse non-negative mixtures of known directions, and how many of the directions a dictionary finds.

    x = scale * (sum_i a_i w_i + m + e)
    a_i = (0.5 + Exp(1)) with probability p_i, else 0;   p_i = min(cap, c * rank_i^-exponent),  sum_i p_i = active
    w_i unit directions, uniform on the sphere;  m one fixed direction of length mean_norm
    e Gaussian, noise_norm / sqrt(width) a coordinate: E ||e||^2 = noise_norm^2

Everything is drawn from streams that no dictionary draws from (pipeline/seeding.py names them), at seeds of their own: a
dictionary that starts at the planted directions would flatter every method.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from pipeline.seeding import generator
from pipeline.suites.synthetic import EXTRA, LEAST, firing_probabilities

DATA_SEED = 7_000_000  # plus the number of the draw; dictionaries of the benchmarks take small seeds
BLOCK = 4096  # rows drawn at once: a shorter draw is the beginning of a longer one


@dataclasses.dataclass(frozen=True)
class PlantedSet:
    """What is planted, and the dictionary that is to find it.

    Attributes:
        name: of the set.
        width: d of the activations.
        n_directions: planted directions; the dictionary has as many features (d_sae).
        active: mean number of active directions a row.
        exponent: a direction's probability falls with its rank to this power; 0: uniform use.
        mean_norm: norm of what all rows share, in units of the directions.
        noise_norm: root mean square norm of a row's noise, in the same units.
        scale: factor on everything.
        l0: top_k or target_l0 of the dictionary.
        cap: largest probability of a direction.
    """

    name: str
    width: int
    n_directions: int
    active: float
    exponent: float
    mean_norm: float
    noise_norm: float
    scale: float
    l0: int
    cap: float = 0.5

    def probabilities(self) -> Tensor:
        """p [n_directions], descending: rank^-exponent scaled to the sum `active`, none above `cap`.

        Raises:
            ValueError: `active` cannot be reached under the cap.
        """
        if self.active > self.cap * self.n_directions:
            raise ValueError(
                f"{self.name}: {self.n_directions} directions of probability {self.cap} give no {self.active} active"
            )
        return firing_probabilities(self.n_directions, self.active, self.exponent, self.cap)

    def draw(self, seed: int) -> Planted:
        """Draw number `seed` of the set: its directions, its mean and its rows."""
        return Planted(self, DATA_SEED + seed)


class Planted:
    """One draw of a set.

    Args:
        about: the set.
        seed: of all that is drawn.

    Attributes:
        directions: unit rows [n_directions, width], without the scale.
        mean: [width], of length mean_norm.
        probabilities: [n_directions].
    """

    def __init__(self, about: PlantedSet, seed: int) -> None:
        self.about, self.seed = about, seed
        shape = (about.n_directions, about.width)
        self.directions = torch.nn.functional.normalize(torch.randn(shape, generator=self.stream("directions")), dim=-1)
        drawn = torch.randn(about.width, generator=self.stream("mean"))
        self.mean = about.mean_norm * drawn / drawn.norm()
        self.probabilities = about.probabilities()

    def stream(self, *names: str | int) -> torch.Generator:
        """The generator of one thing that is drawn."""
        return generator(self.seed, "planted", self.about.name, *names)

    def coefficients(self, n: int, random: torch.Generator) -> Tensor:
        """a [n, n_directions] of `n` rows, float32, most of it 0."""
        active = torch.rand(n, self.about.n_directions, generator=random) < self.probabilities
        sizes = torch.empty(int(active.sum())).exponential_(1 / EXTRA, generator=random).add_(LEAST)
        return torch.zeros(active.shape).masked_scatter_(active, sizes)

    def rows(self, n: int, part: str) -> Tensor:
        """Activations [n, width] float32 of the part "train", "held out" or any other name; parts are independent."""
        about, found = self.about, torch.empty(n, self.about.width)
        for start in range(0, n, BLOCK):
            random = self.stream("rows", part, start)
            mixed = self.coefficients(BLOCK, random) @ self.directions + self.mean
            mixed += about.noise_norm / math.sqrt(about.width) * torch.randn(mixed.shape, generator=random)
            found[start : start + BLOCK] = about.scale * mixed[: n - start]
        return found


MAIN = PlantedSet(
    name="main", width=256, n_directions=2048, active=16, exponent=0.5, mean_norm=2.0, noise_norm=0.3, scale=4.0, l0=32
)
SECOND = PlantedSet(
    name="second", width=192, n_directions=1536, active=10, exponent=0.3, mean_norm=6.0, noise_norm=0.5, scale=0.7, l0=20
)
EASY = PlantedSet(
    name="easy", width=128, n_directions=512, active=8, exponent=0.0, mean_norm=0.0, noise_norm=0.05, scale=1.0, l0=16
)
SETS = {planted.name: planted for planted in (MAIN, SECOND, EASY)}
