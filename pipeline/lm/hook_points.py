"""Names of the places in a language model whose activations are read and written, as in TransformerLens.

    blocks.L.hook_resid_pre            residual stream before block L
    blocks.L.ln1.hook_normalized       attention's norm before gain and bias: (x - mean) / sqrt(var + eps), or x / rms
    blocks.L.ln1.hook_out              the same after gain and bias: what attention reads
    blocks.L.attn.hook_out             what attention gives, in families that norm it before it is added
    blocks.L.ln1_post.hook_normalized  the norm of what attention gives, in families that have one, before its gain
    blocks.L.ln1_post.hook_out         the same after its gain
    blocks.L.hook_attn_out             what attention adds to the residual stream
    blocks.L.ln2.hook_normalized       the MLP's norm before gain and bias
    blocks.L.ln2.hook_out              the same after gain and bias: what the MLP reads
    blocks.L.mlp.hook_out              what the MLP gives, in families that norm it before it is added
    blocks.L.ln2_post.hook_normalized  the norm of what the MLP gives, in families that have one, before its gain
    blocks.L.ln2_post.hook_out         the same after its gain
    blocks.L.hook_mlp_out              what the MLP adds to the residual stream
    blocks.L.hook_resid_post           residual stream after block L

This is also the order in which they occur in a run, with parallel and with sequential residuals. Which of them a block has
is what its family declares (architectures.py). Importing this module costs nothing: parameters are checked with it before
anything is loaded.
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
        order: index into `hook_keys.SITES`.
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


def layer_of(name: str) -> int:
    """The block of a hook point's name that is known to be one."""
    return int(name.split(".")[1])


@dataclass(frozen=True)
class HookPoints:
    """The hook points of one model.

    Attributes:
        model: its name, for messages.
        sites: of each block, in the order of `hook_keys.SITES`.
        family: what `model` is, for messages.
    """

    model: str
    sites: tuple[tuple[str, ...], ...]
    family: str = ""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.sites)

    def names(self) -> list[str]:
        """All, in the order of a run."""
        return [f"blocks.{layer}.{site}" for layer, sites in enumerate(self.sites) for site in sites]

    def describe(self) -> str:
        """All in one short phrase."""
        alike: dict[tuple[str, ...], list[int]] = {}
        for layer, sites in enumerate(self.sites):
            alike.setdefault(sites, []).append(layer)
        if len(alike) == 1:
            return f"blocks.L.{{{', '.join(self.sites[0])}}} with L from 0 to {self.n_layers - 1}"
        of = [f"blocks.L.{{{', '.join(sites)}}} with L {', '.join(map(str, layers))}" for sites, layers in alike.items()]
        return " and ".join(of)

    def parse(self, name: str) -> HookPoint:
        """Check the name of a hook point.

        Raises:
            DataError: no such hook point; the message has the nearest one and all that exist.
        """
        match = _NAME.fullmatch(name)
        if match is None or match[2] not in SITES:
            near = nearest(name, self.names())
            hint = f"; did you mean '{near}'?" if near else ";"
            raise DataError(f"unknown hook point '{name}'{hint} {self.model} has {self.describe()}")
        layer = int(match[1])
        if layer >= self.n_layers:
            near = nearest(name, self.names()) or f"blocks.{self.n_layers - 1}.{match[2]}"
            raise DataError(
                f"unknown hook point '{name}': layer {layer} does not exist, {self.model} has {self.n_layers} layers; "
                f"did you mean '{near}'? It has {self.describe()}"
            )
        if match[2] not in self.sites[layer]:
            family = f" (family {self.family})" if self.family else ""
            raise DataError(f"hook point '{name}': {self.model}{family} has no {match[2]} there; it has {self.describe()}")
        return HookPoint(layer, SITES.index(match[2]))

    def parse_all(self, names: Iterable[str]) -> dict[str, HookPoint]:
        """:meth:`parse` of several names.

        Raises:
            DataError: one does not exist, or `names` is a bare string.
        """
        if isinstance(names, str):
            raise DataError(f"hook points should be a list of names, got the string '{names}'")
        return {name: self.parse(name) for name in names}

    def last_of(self, names: Sequence[str]) -> str:
        """The one of `names` that occurs last in a run."""
        return max(names, key=self.parse)
