"""initialize_lorsa_with_mhsa: query-key heads are the model's own, features read and write along each head's outputs.

Every model head is repeated Q / H times. W_Q and W_K are divided by s_in, so that normalised input gives the model's own
scores; biases and q/k gains are copied. The other fields must be the model's too (`models_fit.attention_fields`); what
low-rank sparse attention cannot be (another scaling of the rotary frequencies, a sliding window, squashed scores) is refused.
With y[q] = sum_k A[q, k] x[k] W_V W_O a head's output (without biases), feature i of one of its query-key heads has

    w_O,i = u_i = the direction of y less its mean, at a token drawn for it
    w_V,i = (s_out / s_in) W_V W_O u_i,   b_V,i = -mean(y) . u_i

so that h_i is the centred output's component along u_i: rows start inside the head's active subspace. One least-squares
factor follows (scale.py). Source: the option of Language-Model-SAEs; rows from activations instead of random ones are ours.

With initialize_W_D_with_active_subspace too, u_i is a random direction in the span of the top principal directions of the
head's y: d_active_subspace of them, or their effective rank. Source: Wang et al. 2025 (active subspace initialisation).
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import NumericsError, ParamsError
from pipeline.hook_keys import ATTENTION_OUTPUT
from pipeline.initialization.activation_rows import distinct_rows
from pipeline.initialization.active_subspace import principal_directions
from pipeline.initialization.sample import Sample
from pipeline.initialization.weights import parts_of
from pipeline.lm.attention import AttentionWeights
from pipeline.models_fit import OPTION, check_attention_fits
from pipeline.norms.statistics import effective_rank
from pipeline.seeding import generator

_READS = re.compile(r"blocks\.(\d+)\.ln1\.(hook_out|hook_normalized)")


def attention_layer(dictionary: Dictionary, model_layer: int | None = None) -> int:
    """The layer whose attention the dictionary imitates.

    Raises:
        ParamsError: it has no query-key heads, or does not read an attention's input and write its output.
    """
    if not {"W_Q", "W_K"} <= dict(dictionary.named_parameters()).keys():
        kind = dictionary.config.kind
        raise ParamsError(f"initializer.{OPTION}: not for dictionary.kind '{kind}', which has no attention; write false")
    reads, writes = _READS.fullmatch(dictionary.hooks_in[0]), ATTENTION_OUTPUT.fullmatch(dictionary.hooks_out[0])
    if not reads or not writes or reads[1] != writes[1]:
        raise ParamsError(
            f"initializer.{OPTION}: needs blocks.L.ln1.hook_out (or ln1.hook_normalized) to blocks.L.hook_attn_out of one "
            f"layer L; this dictionary reads {dictionary.hooks_in[0]} and writes {dictionary.hooks_out[0]}"
        )
    layer = int(reads[1])
    if model_layer not in (None, layer):
        raise ParamsError(f"initializer.model_layer: {model_layer} is not the layer of the hook points, {layer}; write null")
    return layer


class Subspace(NamedTuple):
    """Rows are random directions of each head's active subspace.

    Attributes:
        d_active: its dimensions; None: the effective rank of the head's output.
    """

    d_active: int | None


@torch.no_grad()
def set_attention_(
    dictionary: Dictionary, sample: Sample, attention: AttentionWeights, seed: int, subspace: Subspace | None = None
) -> dict[str, float]:
    """Set query-key heads, values and outputs from the model's.

    Args:
        dictionary: drawn already.
        sample: contexts.
        attention: of the layer, as a function of the raw activation at the hook point read.
        seed: of the choice of tokens, or of directions.
        subspace: None: rows are the head's outputs at tokens.

    Returns: {"d_active_subspace": the largest number of directions of a head}, with a subspace.

    Raises:
        ParamsError: the heads do not fit, or a head has fewer dimensions than are asked for.
        NumericsError: all outputs of a head are equal.
    """
    check_attention_fits(dictionary.config.to_dict(), attention)
    if subspace is not None and (subspace.d_active or 0) > attention.d_head:
        wide = f"{subspace.d_active} directions do not fit in a head's {attention.d_head} dimensions"
        raise ParamsError(f"initializer.d_active_subspace: {wide} ({OPTION})")
    parts = parts_of(dictionary, OPTION)
    repeats = len(parts) // attention.n_heads
    scales = sample.raw_scales()
    _copy_heads_(dictionary, attention, repeats, scales[0])
    most = 0
    for index, part in enumerate(parts):
        head = index // repeats
        through = (attention.W_V[head] @ attention.W_O[head] * (scales[1] / scales[0])).to(part.W_E)
        y = sample.inputs(part) @ through
        if bool((y == y[0]).all()):
            raise NumericsError(f"initializer.{OPTION}: all outputs of head {head} are equal on {len(y)} sampled tokens")
        if subspace is None:
            rows = _output_rows(y, part.rows(), seed, index)
        else:
            rows, n = _subspace_rows(y, part.rows(), subspace.d_active, seed, index)
            most = max(most, n)
        part.set_rows(rows)
        part.W_E.copy_(through @ rows.T)
        part.b_E.copy_(-(y.mean(0) @ rows.T))
    return {} if subspace is None else {"d_active_subspace": most}


def _copy_heads_(dictionary: Dictionary, attention: AttentionWeights, repeats: int, scale: float) -> None:
    """Queries and keys of the model's heads, each `repeats` times, for input that is `scale` times the raw one."""
    named = dict(dictionary.named_parameters())

    def copy(name: str, value: Tensor) -> None:
        named[name].copy_(value.repeat_interleave(repeats, dim=0).to(named[name]))

    copy("W_Q", attention.W_Q / scale)
    copy("W_K", attention.W_K / scale)
    copy("b_Q", attention.b_Q)
    copy("b_K", attention.b_K)
    if attention.q_gain is not None and attention.k_gain is not None:
        copy("q_gain", attention.q_gain)
        copy("k_gain", attention.k_gain)


def _output_rows(y: Tensor, drawn: Tensor, seed: int, index: int) -> Tensor:
    """Directions of centred outputs y [N, D] at different tokens; of the drawn rows where there are too few."""
    rows = drawn.clone()
    chosen = distinct_rows(y, len(rows), seed, index)
    rows[: len(chosen)] = y[chosen] - y.mean(0)
    return torch.nn.functional.normalize(rows, dim=-1)


def _subspace_rows(y: Tensor, drawn: Tensor, d_active: int | None, seed: int, index: int) -> tuple[Tensor, int]:
    """Random directions in the span of the top principal directions of outputs y [N, D], and the number of those."""
    values, vectors = principal_directions(y)
    n = effective_rank(values) if d_active is None else d_active
    mixture = torch.randn(len(drawn), n, generator=generator(seed, "initialize", "head subspace", index))
    return torch.nn.functional.normalize(mixture.to(y) @ vectors[:n].to(y), dim=-1), n
