"""The base initialisation's options (SPEC initializer); each kind draws from them in its own file."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from pipeline.errors import ParamsError, unknown_name
from pipeline.params.choices import CROSS_LAYER_DECODERS
from pipeline.seeding import generator

DEFAULT_LOG_THRESHOLD = math.log(0.1)


@dataclasses.dataclass(frozen=True)
class BaseInitialization:
    """How a kind draws its first weights.

    Attributes:
        decoder_uniform_bound: W_D ~ U(-bound, bound), entry by entry (the bound itself, not divided by any width, as in
            OpenMOSS' Language-Model-SAEs, whose names and defaults these are).
        encoder_uniform_bound: W_E likewise, where it is not the decoder's transpose.
        init_encoder_with_decoder_transpose: W_E = factor * W_D^T; needs d_in == d_out, where they differ W_E is drawn.
        init_encoder_with_decoder_transpose_factor: that factor.
        init_log_jumprelu_threshold_value: first value of t = log theta; null: log 0.1.
        cross_layer_decoders: a cross-layer transcoder's blocks: `drawn`; `by_sources`: every block, the layer's own too,
            divided by the root of the number of layers that write the same target; `zero`: those to later layers are zero.
        unit_rows: the drawn decoder rows get unit length before the encoder is made of them (trainer.decoder_constraint).
    """

    decoder_uniform_bound: float = 1.0
    encoder_uniform_bound: float = 1.0
    init_encoder_with_decoder_transpose: bool = True
    init_encoder_with_decoder_transpose_factor: float = 1.0
    init_log_jumprelu_threshold_value: float | None = None
    unit_rows: bool = False
    cross_layer_decoders: str = "drawn"

    def __post_init__(self) -> None:
        faults = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool):
                if not isinstance(value, bool):
                    faults.append(f"initializer.{field.name}: expected true or false, got {value!r}")
            elif value is None and field.default is None:
                continue
            elif isinstance(field.default, str):
                if value not in CROSS_LAYER_DECODERS:
                    faults.append(f"initializer.{field.name}: {unknown_name('start', str(value), CROSS_LAYER_DECODERS)}")
            elif isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                faults.append(f"initializer.{field.name}: expected a finite number, got {value!r}")
            elif field.name.endswith("_bound") and value <= 0:
                faults.append(f"initializer.{field.name}: must be positive, got {value}")
        if faults:
            raise ParamsError(faults)

    @property
    def log_threshold(self) -> float:
        """The first t of every feature."""
        given = self.init_log_jumprelu_threshold_value
        return DEFAULT_LOG_THRESHOLD if given is None else float(given)


@torch.no_grad()
def uniform_(tensor: Tensor, bound: float, seed: int, name: str) -> None:
    """Fill with U(-bound, bound); the draw belongs to the seed and the tensor's name, on every device the same."""
    drawn = torch.rand(tensor.shape, generator=generator(seed, "dictionary", name), dtype=torch.float32)
    tensor.copy_((drawn * 2 - 1) * bound)


@torch.no_grad()
def normal_(tensor: Tensor, deviation: float, seed: int, name: str) -> None:
    """Fill with N(0, deviation^2), drawn as `uniform_` draws."""
    drawn = torch.randn(tensor.shape, generator=generator(seed, "dictionary", name), dtype=torch.float32)
    tensor.copy_(drawn * deviation)
