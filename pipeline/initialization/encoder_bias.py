"""init_encoder_bias_with_mean_hidden_pre: the encoder bias that makes each feature's mean pre-activation 0."""

from __future__ import annotations

import torch

from pipeline.dictionaries.base import Dictionary
from pipeline.initialization.sample import Sample
from pipeline.initialization.weights import parts_of

OPTION = "init_encoder_bias_with_mean_hidden_pre"
_BLOCK = 4096


@torch.no_grad()
def set_encoder_bias_(dictionary: Dictionary, sample: Sample) -> None:
    """b_E <- b_E - mean h / mean(dh / db_E): h is linear in b_E, token by token, in the GLU encoder too.

    Without GLU dh / db_E = 1. Features whose gate is closed on every token are left alone.

    Args:
        dictionary: encoder set.
        sample: normalised inputs.

    Raises:
        ParamsError: not for this kind.
    """
    gated = any(part.gated for part in parts_of(dictionary, OPTION))
    bias, shape = dictionary.encoder_bias(), dictionary.feature_shape
    before = bias.clone()
    total = torch.zeros(bias.shape, dtype=torch.float64, device=bias.device)
    slope = torch.zeros_like(total)
    n_tokens = 0
    rows = _BLOCK if sample.mask is None and not dictionary.reads_sequences else max(1, _BLOCK // sample.x.shape[1])
    for start in range(0, len(sample), rows):
        x = sample.x[start : start + rows]
        mask = None if sample.mask is None else sample.mask[start : start + rows]

        def mean_part(x: torch.Tensor = x, mask: torch.Tensor | None = mask) -> torch.Tensor:
            h = dictionary.pre_activations(x).reshape(-1, *shape)
            return (h if mask is None else h[mask.reshape(-1)]).double()

        h = mean_part()
        n_tokens += len(h)
        total += h.sum(0)
        if gated:
            bias.add_(1.0)
            slope += (mean_part() - h).sum(0)
            bias.copy_(before)
    if not gated:
        slope.fill_(n_tokens)
    usable = slope.abs() > 1e-6 * n_tokens
    bias.sub_(torch.where(usable, total / torch.where(usable, slope, 1.0), 0.0).to(bias.dtype))
