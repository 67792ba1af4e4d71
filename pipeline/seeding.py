"""Named random generators, all derived from one seed.

No module draws from a global generator: it asks for `generator(seed, "what", index)`. Streams with different names are
independent, and adding one never moves another.
"""

from __future__ import annotations

import hashlib
import numbers
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on `seed` and on every name, in order; whole numbers of any type count alike."""
    plain = [int(n) if isinstance(n, numbers.Integral) and not isinstance(n, bool) else n for n in names]
    text = "\x1f".join([str(int(seed)), *(f"{type(n).__name__}:{n}" for n in plain)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU torch generator for the stream `names` of `seed`."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> numpy.random.Generator:
    """A numpy generator (PCG64) for the stream `names` of `seed`."""
    import numpy

    return numpy.random.Generator(numpy.random.PCG64(derive(seed, *names)))
