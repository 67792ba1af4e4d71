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
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import ParamsError
from pipeline.hook_keys import MLP_INPUT
from pipeline.initialization.sample import Sample
from pipeline.initialization.weights import parts_of

OPTION = "initialize_tc_with_mlp"
_BLOCK = 8192
_WRITES = re.compile(r"blocks\.(\d+)\.hook_mlp_out")


def mlp_layers(dictionary: Dictionary, model_layer: int | None = None) -> list[int]:
    """The layers whose MLPs the dictionary imitates, one for each linear part.

    Args:
        dictionary: says the hook points.
        model_layer: initializer.model_layer; None: from the hook points.

    Raises:
        ParamsError: the dictionary does not read MLPs' inputs and write their outputs, or not of that layer.
    """
    pairs = list(zip(dictionary.hooks_in, dictionary.hooks_out, strict=False))
    found = [(MLP_INPUT.fullmatch(hook_in), _WRITES.fullmatch(hook_out)) for hook_in, hook_out in pairs]
    n_parts = len(dictionary.parts())
    if n_parts != len(pairs) or any(not reads or not writes or reads[1] != writes[1] for reads, writes in found):
        raise ParamsError(
            f"initializer.{OPTION}: needs a transcoder from what the MLP reads (blocks.L.ln2.hook_out) to "
            f"blocks.L.hook_mlp_out of one layer L (kind clt: of each layer); this dictionary reads "
            f"{', '.join(dictionary.hooks_in)} and writes {', '.join(dictionary.hooks_out)}; "
            "write these, or false"
        )
    layers = [int(reads[1]) for reads, _ in found if reads]
    if model_layer is not None and layers != [model_layer]:
        named = ", ".join(map(str, layers))
        raise ParamsError(f"initializer.model_layer: {model_layer} is not the layer of the hook points, {named}; write null")
    return layers


@torch.no_grad()
def set_decoder_rows_(dictionary: Dictionary, sample: Sample, mlps: Sequence[Callable[[Tensor], Tensor]]) -> None:
    """Set W_D from the MLPs' responses.

    Args:
        dictionary: drawn already, with its encoder.
        sample: gives the mean and spread of raw inputs, and the normalisation's scales.
        mlps: for each linear part, raw input [n, d_in] -> raw output [n, d_out].

    Raises:
        ParamsError: not for this kind.
    """
    for part, mlp in zip(parts_of(dictionary, OPTION), mlps, strict=True):
        raw, rows = sample.raw(part), part.rows().clone()
        lengths = torch.linalg.vector_norm(part.W_E, dim=0).clamp_min(1e-12)
        at_mean = mlp(raw.mean[None])
        for start in range(0, len(rows), _BLOCK):
            block = slice(start, start + _BLOCK)
            directions = (part.W_E[:, block] / lengths[block]).T
            responses = mlp(raw.mean + raw.spread * directions) - at_mean
            activations = raw.spread * raw.scale_in * lengths[block]
            rows[block] = raw.scale_out * responses.to(rows) / activations[:, None]
        part.set_rows(rows)
