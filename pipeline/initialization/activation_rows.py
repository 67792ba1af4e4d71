"""initialize_W_D_with_activations: decoder rows are centred activations of randomly chosen tokens.

A direction in which real activations lie is found much later from a random start, if at all: on planted data at 100 steps
FVU was 0.24 from activations and 0.37 from random rows of the same scale.

Decoder row i is the direction of the label of token t_i less the mean label, at unit length before the one least-squares
factor of scale.py (at their own lengths, long activations would win the selection and the rest would die: FVU 0.228 instead
of 0.211 on that data). The encoder:
- SAE: the transpose (with init_encoder_with_decoder_transpose), so that feature i reads along the row it writes.
- Transcoder: a label direction means nothing at the input, even where the widths agree; column i is the direction of the
  centred input of the same token t_i, at the length that the transpose would have. Feature i then starts as "where the
  input is like that of t_i, write what was written there".
- Without init_encoder_with_decoder_transpose the encoder stays as drawn.
A kind with several linear parts (layers of a cross-layer transcoder) draws tokens for each.

Tokens with equal activations (the first position of contexts that start alike) are used once: equal features would stay
equal for ever. Features beyond the number of tokens keep their drawn direction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import NumericsError
from pipeline.initialization.sample import Sample
from pipeline.initialization.weights import parts_of, transpose_encoder_
from pipeline.seeding import generator

OPTION = "initialize_W_D_with_activations"


@torch.no_grad()
def set_decoder_rows_(dictionary: Dictionary, sample: Sample, *, transpose: bool, factor: float, seed: int) -> bool:
    """Set W_D (and the encoder, see above).

    Args:
        dictionary: drawn already.
        sample: tokens to choose from.
        transpose: init_encoder_with_decoder_transpose.
        factor: init_encoder_with_decoder_transpose_factor.
        seed: of the choice.

    Returns: whether the encoder follows the decoder.

    Raises:
        ParamsError: not for this kind.
        NumericsError: all labels are equal.
    """
    same_places = dictionary.hooks_in == dictionary.hooks_out
    follows = transpose
    for index, part in enumerate(parts_of(dictionary, OPTION)):
        x, y, rows = sample.inputs(part), sample.labels(part), part.rows().clone()
        chosen = distinct_rows(y, len(rows), seed, index)
        if not len(chosen):
            raise NumericsError(
                f"initializer.{OPTION}: all {len(y)} sampled activations are equal; raise initializer.tokens, or switch it off"
            )
        rows[: len(chosen)] = y[chosen] - y.mean(0)
        rows.div_(torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(1e-12))
        part.set_rows(rows)
        if not transpose:
            continue
        if same_places:
            follows = transpose_encoder_(part, factor)
            continue
        part.W_E[:, : len(chosen)] = (x[chosen] - x.mean(0)).T
        part.W_E.mul_(factor / torch.linalg.vector_norm(part.W_E, dim=0, keepdim=True).clamp_min(1e-12))
    return follows


def distinct_rows(rows: Tensor, n: int, seed: int, part: int = 0) -> Tensor:
    """Indices of up to `n` randomly chosen rows, no two equal and none equal to the mean; others for each `part`. [N, D]."""
    names = ("initialize", "activation rows", part) if part else ("initialize", "activation rows")
    order = torch.randperm(len(rows), generator=generator(seed, *names)).tolist()
    host = rows.detach().to("cpu", torch.float32).contiguous().numpy()
    seen = {rows.mean(0).detach().to("cpu", torch.float32).numpy().tobytes()}
    chosen: list[int] = []
    for index in order:
        content = host[index].tobytes()
        if content not in seen:
            seen.add(content)
            chosen.append(index)
            if len(chosen) == n:
                break
    return torch.tensor(chosen, dtype=torch.int64, device=rows.device)
