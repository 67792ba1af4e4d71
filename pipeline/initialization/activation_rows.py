"""initialize_W_D_with_activations: decoder rows are centred activations of randomly chosen tokens.

A direction in which real activations lie is found much later from a random start, if at all: on planted data at 100 steps
FVU was 0.24 from activations and 0.37 from random rows of the same scale.

Decoder row i is the label of token t_i less the mean label. The encoder:
- SAE: the transpose (with init_encoder_with_decoder_transpose), so that feature i reads along the row it writes.
- Transcoder: a label direction means nothing at the input, even where the widths agree; column i is the centred input of
  the same token t_i, with the length that the transpose would have. Feature i then starts as "where the input is like
  that of t_i, write what was written there".
- Without init_encoder_with_decoder_transpose the encoder stays as drawn.

Tokens with equal activations (the first position of contexts that start alike) are used once: equal features would stay
equal for ever. Features beyond the number of tokens keep their drawn direction, at the mean length of the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import NumericsError
from pipeline.initialization.sample import Sample
from pipeline.initialization.weights import transpose_encoder_, weights_of
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
    weights = weights_of(dictionary, OPTION)
    chosen = distinct_rows(sample.y, len(weights.W_D), seed)
    rows = sample.y[chosen] - sample.y.mean(0)
    lengths = torch.linalg.vector_norm(rows, dim=-1)
    if not len(chosen):
        raise NumericsError(f"initializer.{OPTION}: all {len(sample)} sampled activations are equal")
    drawn = weights.W_D[len(chosen) :]
    drawn.mul_(lengths.mean() / torch.linalg.vector_norm(drawn, dim=-1, keepdim=True).clamp_min(1e-12))
    weights.W_D[: len(chosen)] = rows
    if not transpose:
        return False
    if dictionary.hooks_in == dictionary.hooks_out:
        return transpose_encoder_(weights, factor)
    inputs = sample.x[chosen] - sample.x.mean(0)
    inputs = inputs * (factor * lengths / torch.linalg.vector_norm(inputs, dim=-1).clamp_min(1e-12))[:, None]
    weights.W_E[:, : len(chosen)] = inputs.T
    rest = weights.W_E[:, len(chosen) :]
    rest.mul_(factor * lengths.mean() / torch.linalg.vector_norm(rest, dim=0, keepdim=True).clamp_min(1e-12))
    return True


def distinct_rows(rows: Tensor, n: int, seed: int) -> Tensor:
    """Indices of up to `n` randomly chosen rows, no two equal and none equal to the mean. rows: [N, D]."""
    order = torch.randperm(len(rows), generator=generator(seed, "initialize", "activation rows")).tolist()
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
