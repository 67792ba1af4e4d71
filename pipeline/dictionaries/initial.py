"""The base initialisation's options (SPEC initializer); each kind draws from them in its own file."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from pipeline.params.sections.initializer import DrawParams
from pipeline.seeding import generator

DEFAULT_LOG_THRESHOLD = math.log(0.1)


@dataclasses.dataclass(frozen=True)
class BaseInitialization(DrawParams):
    """The draw of a kind's first weights.

    Attributes:
        unit_rows: the drawn decoder rows get unit length before the encoder is made of them (trainer.decoder_constraint).
    """

    unit_rows: bool = False

    @property
    def log_threshold(self) -> float:
        """The first t of every feature."""
        given = self.init_log_jumprelu_threshold_value
        return DEFAULT_LOG_THRESHOLD if given is None else float(given)


@torch.no_grad()
def uniform_(tensor: Tensor, bound: float, seed: int, name: str) -> None:
    """Fill with U(-bound, bound); the draw belongs to the seed and the tensor's name, on every device the same."""
    drawn = torch.rand(tensor.shape, generator=generator(seed, "dictionary", name), dtype=torch.float32)
    tensor.copy_(drawn.mul_(2).sub_(1).mul_(bound))  # in place: one copy of a large matrix, not three


@torch.no_grad()
def normal_(tensor: Tensor, deviation: float, seed: int, name: str) -> None:
    """Fill with N(0, deviation^2), drawn as `uniform_` draws."""
    drawn = torch.randn(tensor.shape, generator=generator(seed, "dictionary", name), dtype=torch.float32)
    tensor.copy_(drawn.mul_(deviation))
