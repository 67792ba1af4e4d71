"""initialize_tc_with_mlp: a transcoder's decoder rows are the MLP's own responses to its encoder directions.

With e_i = W_E[:, i] / ||W_E[:, i]||, m the mean raw input and d the root mean squared distance of inputs from it,

    W_D[i] = s_out (MLP(m + d e_i) - MLP(m)) / (d s_in ||W_E[:, i]||)

so that a lone feature i, whose pre-activation rises by d s_in ||W_E[:, i]|| at that input, writes what the MLP writes. One
least-squares factor (scale.py) then allows for many features being active at once. The encoder stays as drawn: its
transpose would undo the point. Source: the option of Language-Model-SAEs; the finite step instead of a derivative is ours,
since a GELU's slope at the mean says little about inputs at a usual distance.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import ParamsError
from pipeline.initialization.sample import Sample
from pipeline.initialization.weights import parts_of

OPTION = "initialize_tc_with_mlp"
_BLOCK = 8192
_WRITES = re.compile(r"blocks\.(\d+)\.hook_mlp_out")
_READS = re.compile(r"blocks\.(\d+)\.ln2\.(hook_out|hook_normalized)")


def mlp_layer(dictionary: Dictionary, model_layer: int | None = None) -> int:
    """The layer whose MLP the transcoder imitates.

    Args:
        dictionary: says the hook points.
        model_layer: initializer.model_layer; None: from the hook points.

    Raises:
        ParamsError: the dictionary does not read an MLP's input and write its output, or not of that layer.
    """
    hook_in, hook_out = dictionary.hooks_in[0], dictionary.hooks_out[0]
    reads, writes = _READS.fullmatch(hook_in), _WRITES.fullmatch(hook_out)
    if len(dictionary.hooks_in) > 1 or not reads or not writes or reads[1] != writes[1]:
        raise ParamsError(
            f"initializer.{OPTION}: needs a transcoder from blocks.L.ln2.hook_out (or ln2.hook_normalized) to "
            f"blocks.L.hook_mlp_out of one layer L; this dictionary reads {', '.join(dictionary.hooks_in)} and "
            f"writes {', '.join(dictionary.hooks_out)}"
        )
    layer = int(reads[1])
    if model_layer not in (None, layer):
        raise ParamsError(f"initializer.model_layer: {model_layer} is not the layer of the hook points, {layer}; write null")
    return layer


@torch.no_grad()
def set_decoder_rows_(dictionary: Dictionary, sample: Sample, mlp: Callable[[Tensor], Tensor]) -> None:
    """Set W_D from the MLP's responses.

    Args:
        dictionary: drawn already, with its encoder.
        sample: gives the mean and spread of raw inputs, and the normalisation's scales.
        mlp: raw input [n, d_in] -> raw output [n, d_out].

    Raises:
        ParamsError: not for this kind.
    """
    (part,) = parts_of(dictionary, OPTION)
    rows = part.rows().clone()
    lengths = torch.linalg.vector_norm(part.W_E, dim=0).clamp_min(1e-12)
    at_mean = mlp(sample.raw_mean[None])
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        directions = (part.W_E[:, block] / lengths[block]).T
        responses = mlp(sample.raw_mean + sample.raw_spread * directions) - at_mean
        activations = sample.raw_spread * sample.scale_in * lengths[block]
        rows[block] = sample.scale_out * responses.to(rows) / activations[:, None]
    part.set_rows(rows)
