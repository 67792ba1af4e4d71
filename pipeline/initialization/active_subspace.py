"""initialize_W_D_with_active_subspace: decoder rows inside the span of the label's top principal directions.

Where activations fill only part of their space (attention outputs), a random row lies mostly outside of it, and its
feature dies. Each drawn row is projected on the span and set back to its length; of a cross-layer transcoder every row that
writes a layer, from whichever layer, on the span of that layer's label. Of low-rank sparse attention this is the
span of all heads together, unless its heads are the model's: then each has its own (attention.py). Source: Wang et al. 2025
(active subspace initialisation).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import NumericsError, ParamsError
from pipeline.initialization.sample import Sample
from pipeline.initialization.weights import parts_of, transpose_encoder_
from pipeline.norms.statistics import effective_rank

OPTION = "initialize_W_D_with_active_subspace"


@torch.no_grad()
def principal_directions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [D] descending (float64) and eigenvectors [D, D] as rows of the covariance of rows [N, D]."""
    centred = rows - rows.mean(0)
    covariance = (centred.T @ centred).double() / max(len(rows), 1)
    values, vectors = torch.linalg.eigh(covariance)
    return values.flip(0).clamp_min(0.0), vectors.T.flip(0)


@torch.no_grad()
def set_decoder_rows_(
    dictionary: Dictionary, sample: Sample, *, d_active: int | None, transpose: bool, factor: float
) -> tuple[int, bool]:
    """Project W_D; an encoder that was drawn as its transpose becomes that again.

    Args:
        dictionary: drawn already.
        sample: tokens whose labels give the directions.
        d_active: number of directions; None: the effective rank.
        transpose, factor: init_encoder_with_decoder_transpose and its factor.

    Returns: the number of directions (the largest of several parts'), and whether the encoder follows the decoder.

    Raises:
        ParamsError: not for this kind, or more directions than dimensions.
        NumericsError: labels without variance.
    """
    most, follows = 0, transpose and dictionary.drawn_as_transpose
    for part in parts_of(dictionary, OPTION):
        values, vectors = principal_directions(sample.labels(part))
        n = effective_rank(values) if d_active is None else d_active
        if n > len(values):
            raise ParamsError(f"initializer.d_active_subspace: {n} directions do not fit in {len(values)} dimensions")
        if n == 0:
            raise NumericsError(f"initializer.{OPTION}: the sampled labels do not vary")
        rows = part.rows()
        span = vectors[:n].to(rows.dtype)
        part.set_rows(_inside(rows, span))
        if part.other_rows is not None:
            part.other_rows.copy_(_inside(part.other_rows, span))
        follows = follows and transpose_encoder_(part, factor)
        most = max(most, n)
    return most, follows


def _inside(rows: Tensor, span: Tensor) -> Tensor:
    """Rows [..., D] projected on the span of orthonormal directions [n, D], each as long as before; zeros stay zeros."""
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    projected = (rows @ span.T) @ span
    return projected * (lengths / torch.linalg.vector_norm(projected, dim=-1, keepdim=True).clamp_min(1e-12))
