"""Names of the places in a language model whose activations are read and written, as in TransformerLens.

    blocks.L.hook_resid_pre       residual stream before block L
    blocks.L.ln1.hook_normalized  attention's norm before gain and bias: (x - mean) / sqrt(var + eps), or x / rms
    blocks.L.ln1.hook_out         the same after gain and bias: what attention reads
    blocks.L.hook_attn_out        what attention adds to the residual stream
    blocks.L.ln2.hook_normalized  the MLP's norm before gain and bias
    blocks.L.ln2.hook_out         the same after gain and bias: what the MLP reads
    blocks.L.hook_mlp_out         what the MLP adds to the residual stream
    blocks.L.hook_resid_post      residual stream after block L

This is also the order in which they occur in a run, with parallel and with sequential residuals. Importing this module
costs nothing: parameters are checked with it before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.errors import DataError, nearest
from pipeline.hook_keys import SITES

_NAME = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True, order=True)
class HookPoint:
    """A parsed hook point; comparing two gives their order in a run.

    Attributes:
        layer: block, from 0.
        order: index into :data:`SITES`.
    """

    layer: int
    order: int

    @property
    def site(self) -> str:
        """The name inside its block, e.g. `ln2.hook_out`."""
        return SITES[self.order]

    @property
    def name(self) -> str:
        """The full name, e.g. `blocks.3.ln2.hook_out`."""
        return f"blocks.{self.layer}.{self.site}"


def hook_point_names(n_layers: int) -> list[str]:
    """All hook points of a model with `n_layers` blocks, in the order of a run."""
    return [f"blocks.{layer}.{site}" for layer in range(n_layers) for site in SITES]


def describe_hook_points(n_layers: int) -> str:
    """All hook points of a model in one short phrase."""
    return f"blocks.L.{{{', '.join(SITES)}}} with L from 0 to {n_layers - 1}"


def layer_of(name: str) -> int:
    """The block of a hook point's name that is known to be one."""
    return int(name.split(".")[1])


def parse_hook_point(name: str, n_layers: int, model: str = "the model") -> HookPoint:
    """Check the name of a hook point of a model with `n_layers` blocks.

    Raises:
        DataError: no such hook point; the message has the nearest one and all that exist.
    """
    match = _NAME.fullmatch(name)
    if match is None or match[2] not in SITES:
        near = nearest(name, hook_point_names(n_layers))
        hint = f"; did you mean '{near}'?" if near else ";"
        raise DataError(f"unknown hook point '{name}'{hint} {model} has {describe_hook_points(n_layers)}")
    layer = int(match[1])
    if layer >= n_layers:
        near = nearest(name, hook_point_names(n_layers)) or f"blocks.{n_layers - 1}.{match[2]}"
        raise DataError(
            f"unknown hook point '{name}': layer {layer} does not exist, {model} has {n_layers} layers; "
            f"did you mean '{near}'? It has {describe_hook_points(n_layers)}"
        )
    return HookPoint(layer, SITES.index(match[2]))


def parse_hook_points(names: Iterable[str], n_layers: int, model: str = "the model") -> dict[str, HookPoint]:
    """:func:`parse_hook_point` for several names.

    Raises:
        DataError: one does not exist, or `names` is a bare string.
    """
    if isinstance(names, str):
        raise DataError(f"hook points should be a list of names, got the string '{names}'")
    return {name: parse_hook_point(name, n_layers, model) for name in names}


def last_of(names: Sequence[str], n_layers: int) -> str:
    """The one of `names` that occurs last in a run."""
    return max(names, key=lambda name: parse_hook_point(name, n_layers))
