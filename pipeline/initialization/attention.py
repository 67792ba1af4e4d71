"""initialize_lorsa_with_mhsa: query-key heads are the model's own, features read and write along each head's outputs.

Every model head is repeated Q / H times. W_Q and W_K are divided by s_in, so that normalised input gives the model's own
scores; biases and q/k gains are copied. With y[q] = sum_k A[q, k] x[k] W_V W_O a head's output (without biases), feature i of
one of its query-key heads has

    w_O,i = u_i = the direction of y less its mean, at a token drawn for it
    w_V,i = (s_out / s_in) W_V W_O u_i,   b_V,i = -mean(y) . u_i

so that h_i is the centred output's component along u_i: rows start inside the head's active subspace. One least-squares
factor follows (scale.py). Source: the option of Language-Model-SAEs; rows from activations instead of random ones are ours.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import NumericsError, ParamsError
from pipeline.initialization.activation_rows import distinct_rows
from pipeline.initialization.sample import Sample
from pipeline.initialization.weights import parts_of
from pipeline.lm.attention import AttentionWeights

OPTION = "initialize_lorsa_with_mhsa"
_WRITES = re.compile(r"blocks\.(\d+)\.hook_attn_out")
_READS = re.compile(r"blocks\.(\d+)\.ln1\.(hook_out|hook_normalized)")


def attention_layer(dictionary: Dictionary, model_layer: int | None = None) -> int:
    """The layer whose attention the dictionary imitates.

    Raises:
        ParamsError: it has no query-key heads, or does not read an attention's input and write its output.
    """
    if not {"W_Q", "W_K"} <= dict(dictionary.named_parameters()).keys():
        raise ParamsError(f"initializer.{OPTION}: not for dictionary.kind '{dictionary.config.kind}', which has no attention")
    reads, writes = _READS.fullmatch(dictionary.hooks_in[0]), _WRITES.fullmatch(dictionary.hooks_out[0])
    if not reads or not writes or reads[1] != writes[1]:
        raise ParamsError(
            f"initializer.{OPTION}: needs blocks.L.ln1.hook_out (or ln1.hook_normalized) to blocks.L.hook_attn_out of one "
            f"layer L; this dictionary reads {dictionary.hooks_in[0]} and writes {dictionary.hooks_out[0]}"
        )
    layer = int(reads[1])
    if model_layer not in (None, layer):
        raise ParamsError(f"initializer.model_layer: {model_layer} is not the layer of the hook points, {layer}; write null")
    return layer


def check_fits(dictionary: Dictionary, attention: AttentionWeights) -> None:
    """Refuse query-key heads that are not shaped like the model's.

    Raises:
        ParamsError: names every field.
    """
    config = dictionary.config.to_dict()
    normed = attention.q_gain is not None
    wanted: dict[str, object] = {"d_qk_head": attention.d_head, "use_post_qk_ln": normed}
    if normed:
        wanted |= {"normalization_type": "RMS", "eps": attention.eps}
    if attention.rotary_dim:
        wanted |= {"positional_embedding_type": "rotary", "rotary_dim": attention.rotary_dim}
        wanted |= {"rotary_base": attention.rotary_base, "rotary_adjacent_pairs": False}
        wanted["use_NTK_by_parts_rope"] = attention.rope_type == "llama3"
    else:
        wanted["positional_embedding_type"] = "none"
    faults = [
        f"dictionary.{key}: the model's is {value}, got {config[key]}" for key, value in wanted.items() if config[key] != value
    ]
    if config["n_qk_heads"] % attention.n_heads:
        faults.append(f"dictionary.n_qk_heads: a multiple of the model's {attention.n_heads} heads, got {config['n_qk_heads']}")
    if faults:
        raise ParamsError([f"{fault} ({OPTION})" for fault in faults])


@torch.no_grad()
def set_attention_(dictionary: Dictionary, sample: Sample, attention: AttentionWeights, seed: int) -> None:
    """Set query-key heads, values and outputs from the model's.

    Args:
        dictionary: drawn already.
        sample: contexts.
        attention: of the layer, as a function of the raw activation at the hook point read.
        seed: of the choice of tokens.

    Raises:
        ParamsError: the heads do not fit.
        NumericsError: all outputs of a head are equal.
    """
    check_fits(dictionary, attention)
    parts = parts_of(dictionary, OPTION)
    named = dict(dictionary.named_parameters())
    repeats = len(parts) // attention.n_heads
    scales = sample.raw_scales()

    def copy(name: str, value: Tensor) -> None:
        named[name].copy_(value.repeat_interleave(repeats, dim=0).to(named[name]))

    copy("W_Q", attention.W_Q / scales[0])
    copy("W_K", attention.W_K / scales[0])
    copy("b_Q", attention.b_Q)
    copy("b_K", attention.b_K)
    if attention.q_gain is not None and attention.k_gain is not None:
        copy("q_gain", attention.q_gain)
        copy("k_gain", attention.k_gain)
    for index, part in enumerate(parts):
        head = index // repeats
        through = (attention.W_V[head] @ attention.W_O[head] * (scales[1] / scales[0])).to(part.W_E)
        y = sample.inputs(part) @ through
        rows = part.rows().clone()
        chosen = distinct_rows(y, len(rows), seed, index)
        if not len(chosen):
            raise NumericsError(f"initializer.{OPTION}: all outputs of head {head} are equal on {len(y)} sampled tokens")
        rows[: len(chosen)] = y[chosen] - y.mean(0)
        rows.div_(torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(1e-12))
        part.set_rows(rows)
        part.W_E.copy_(through @ rows.T)
        part.b_E.copy_(-(y.mean(0) @ rows.T))
