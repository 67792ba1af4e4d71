"""grid_search_init_norm: one norm for all decoder rows, the one with the least l_rec on a batch.

Coarse: 50 norms from 0.1 to 5. Fine: 20 around the best of them, a coarse step to each side. At each point the encoder is
made from the decoder again (transpose) and its bias too, where those options are on.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.fold import divisible
from pipeline.errors import NumericsError
from pipeline.initialization.sample import Sample
from pipeline.initialization.weights import parts_of
from pipeline.losses.reconstruction import reconstruction_loss

OPTION = "grid_search_init_norm"
LOW, HIGH, COARSE, FINE = 0.1, 5.0, 50, 20


@torch.no_grad()
def search_norm_(dictionary: Dictionary, batch: Sample, redo_encoder: Callable[[], None]) -> tuple[float, float]:
    """Set every feature's (concatenated) decoder norm to the best one; a feature that writes nothing goes on writing nothing.

    Args:
        dictionary: with its decoder's directions and biases.
        batch: normalised rows of the training batch size.
        redo_encoder: makes the encoder and its bias from the decoder as it is then.

    Returns: the norm and its l_rec.

    Raises:
        ParamsError: not for this kind.
        NumericsError: no norm gives a finite l_rec.
    """
    parts_of(dictionary, OPTION)

    def set_norm(norm: float) -> None:
        dictionary.scale_decoder_(norm / divisible(dictionary.decoder_norms()))
        redo_encoder()

    def loss(norm: float) -> float:
        set_norm(norm)
        return float(reconstruction_loss(dictionary.run(batch.x, batch.mask)[1], batch.y, batch.mask))

    def best_of(norms: list[float]) -> tuple[float, float]:
        losses = [(value, norm) for norm, value in ((norm, loss(norm)) for norm in norms) if math.isfinite(value)]
        if not losses:
            raise NumericsError(f"initializer.{OPTION}: l_rec is finite at no norm between {norms[0]:.3g} and {norms[-1]:.3g}")
        value, norm = min(losses)
        return norm, value

    step = (HIGH - LOW) / (COARSE - 1)
    coarse, coarse_loss = best_of([LOW + step * i for i in range(COARSE)])
    low, high = max(coarse - step, LOW / 10), coarse + step
    fine, fine_loss = best_of([low + (high - low) * i / (FINE - 1) for i in range(FINE)])
    norm, value = (fine, fine_loss) if fine_loss <= coarse_loss else (coarse, coarse_loss)
    set_norm(norm)
    return norm, value
