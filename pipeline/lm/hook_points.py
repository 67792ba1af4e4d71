"""Names of the places in a language model whose activations are read and written, as in TransformerLens.

    hook_embed                         what the embedding gives: of the token alone, times its scale in families that have one
    blocks.L.hook_resid_pre            residual stream before block L
    blocks.L.ln1.hook_normalized       attention's norm before gain and bias: (x - mean) / sqrt(var + eps), or x / rms
    blocks.L.ln1.hook_out              the same after gain and bias: what attention reads
    blocks.L.attn.hook_q               queries before any norm or rotation of theirs, [b, T, heads * width of a head]
    blocks.L.attn.hook_k               keys likewise, [b, T, key heads * width of a head]
    blocks.L.attn.hook_v               values, as wide as the keys
    blocks.L.attn.hook_z               what the heads give, beside each other: what the output projection reads
    blocks.L.attn.hook_out             what attention gives, in families that norm it before it is added
    blocks.L.ln1_post.hook_normalized  the norm of what attention gives, in families that have one, before its gain
    blocks.L.ln1_post.hook_out         the same after its gain
    blocks.L.hook_attn_out             what attention adds to the residual stream
    blocks.L.hook_resid_mid            residual stream between attention and MLP, unless they are parallel
    blocks.L.ln2.hook_normalized       the MLP's norm before gain and bias
    blocks.L.ln2.hook_out              the same after gain and bias
    blocks.L.mlp.hook_in               what the MLP reads
    blocks.L.mlp.hook_pre              neurons before the activation function; of a gated MLP the gate's
    blocks.L.mlp.hook_pre_linear       of a gated MLP what the gate multiplies
    blocks.L.mlp.hook_post             neurons: what the output projection reads
    blocks.L.mlp.hook_out              what the MLP gives, in families that norm it before it is added
    blocks.L.ln2_post.hook_normalized  the norm of what the MLP gives, in families that have one, before its gain
    blocks.L.ln2_post.hook_out         the same after its gain
    blocks.L.hook_mlp_out              what the MLP adds to the residual stream
    blocks.L.hook_resid_post           residual stream after block L
    ln_final.hook_normalized           the final norm before gain and bias
    ln_final.hook_out                  the same after gain and bias: what the unembedding reads
    module:PATH:input                  what a module is given first, by its path in transformers' model
    module:PATH:output                 what it gives first

This is also the order in which they occur in a run, with parallel and with sequential residuals. Which of them a block has
is what its family declares (architectures.py). Importing this module costs nothing: parameters are checked with it before
anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.arguments import shown
from pipeline.errors import DataError, nearest
from pipeline.hook_keys import AFTER, BEFORE, MODULE, SIDES, SITES, module_of

_NAME = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True, order=True)
class HookPoint:
    """A parsed hook point; comparing two gives their order in a run, but for modules of one block, whose order is not known.

    Attributes:
        layer: block, from 0; -1 before the blocks, their number after them and for a module outside of them.
        order: index into `hook_keys.SITES` (BEFORE, AFTER); of a module after all of its block.
        name: the full name, e.g. `blocks.3.ln2.hook_out`.
        site: the name inside its block, e.g. `ln2.hook_out`; of a module "".
        path, side: of a module; else "".
        anywhere: a module outside of the blocks, so that it may run before or after them.
    """

    layer: int
    order: int
    name: str
    site: str = ""
    path: str = ""
    side: str = ""
    anywhere: bool = False

    @property
    def earliest(self) -> int:
        """The block (-1: what stands before them) that nothing before it in a run depends on it."""
        return -1 if self.anywhere else self.layer


@dataclass(frozen=True)
class HookPoints:
    """The hook points of one model.

    Attributes:
        model: its name, for messages.
        sites: of each block, in the order of `hook_keys.SITES`.
        family: what `model` is, for messages.
        blocks: path of the list of blocks.
        after: the sites after the blocks.
    """

    model: str
    sites: tuple[tuple[str, ...], ...]
    family: str = ""
    blocks: str = ""
    after: tuple[str, ...] = AFTER

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.sites)

    def names(self) -> list[str]:
        """All but those of modules, in the order of a run."""
        return [*BEFORE, *(f"blocks.{layer}.{site}" for layer, sites in enumerate(self.sites) for site in sites), *self.after]

    def describe(self) -> str:
        """All in one short phrase."""
        alike: dict[tuple[str, ...], list[int]] = {}
        for layer, sites in enumerate(self.sites):
            alike.setdefault(sites, []).append(layer)
        of = [
            f"blocks.L.{{{', '.join(sites)}}} with L {f'from 0 to {self.n_layers - 1}' if len(alike) == 1 else _list(layers)}"
            for sites, layers in alike.items()
        ]
        return ", ".join([*BEFORE, *of, *self.after, f"{MODULE}:PATH:{'|'.join(SIDES)}"])

    def parse(self, name: str) -> HookPoint:
        """Check the name of a hook point. Whether there is a module of a path is not known here.

        Raises:
            DataError: no such hook point; the message has the nearest one, and all that exist where the layer does.
        """
        if not isinstance(name, str):
            raise DataError(f"hook point: wanted a name, such as blocks.0.hook_resid_post, got {shown(name)}")
        if name in BEFORE:
            return HookPoint(-1, BEFORE.index(name), name, name)
        if name in self.after:
            return HookPoint(self.n_layers, AFTER.index(name), name, name)
        module = module_of(name)
        if module is not None:
            return self._parse_module(name, *module)
        match = _NAME.fullmatch(name)
        if match is None or match[2] not in SITES:
            near = nearest(name, self.names())
            hint = f"; did you mean '{near}'?" if near else ";"
            raise DataError(f"unknown hook point '{name}'{hint} {self.model} has {self.describe()}")
        layer = int(match[1])
        if layer >= self.n_layers:
            having = [at for at, sites in enumerate(self.sites) if match[2] in sites]
            near = f"blocks.{having[-1]}.{match[2]}" if having else nearest(name, self.names())
            raise no_such_layer(name, layer, self.n_layers, self.model, near)
        if match[2] not in self.sites[layer]:
            family = f" (family {self.family})" if self.family else ""
            why = "; its attention and MLP are parallel" if match[2] == "hook_resid_mid" else ""
            raise DataError(f"hook point '{name}': {self.model}{family} has no {match[2]} there{why}; it has {self.describe()}")
        return HookPoint(layer, SITES.index(match[2]), name, match[2])

    def parse_all(self, names: Iterable[str]) -> dict[str, HookPoint]:
        """:meth:`parse` of several names.

        Raises:
            DataError: one does not exist, or `names` is a bare string.
        """
        if isinstance(names, str):
            raise DataError(f"hook points should be a list of names, got the string '{names}'")
        if not isinstance(names, Iterable):
            raise DataError(f"hook points should be a list of names, got {shown(names)}")
        return {name: self.parse(name) for name in names}

    def up_to(self, names: Sequence[str]) -> list[str]:
        """All sites that may occur before the last of `names`."""
        last = max(self.parse_all(names).values())
        return [name for name in self.names() if self.parse(name) < last]

    def _parse_module(self, name: str, path: str, side: str) -> HookPoint:
        inside = path.removeprefix(f"{self.blocks}.")
        if inside == path:
            return HookPoint(self.n_layers, len(AFTER), name, path=path, side=side, anywhere=True)
        number = inside.split(".")[0]
        if not number.isdecimal() or int(number) >= self.n_layers:
            raise DataError(
                f"unknown hook point '{name}': {self.model} has {self.n_layers} layers, {self.blocks}.0 to "
                f"{self.blocks}.{self.n_layers - 1}"
            )
        return HookPoint(int(number), len(SITES), name, path=path, side=side)


def no_such_layer(name: str, layer: int, n_layers: int, model: str, near: str | None) -> DataError:
    """The error for a hook point of a layer that is out of range; `near`: the same place of the last layer that has it."""
    hint = f"; did you mean '{near}'?" if near else ""
    return DataError(
        f"unknown hook point '{name}': layer {layer} does not exist, {model} has {n_layers} layers, 0 to {n_layers - 1}{hint}"
    )


def _list(layers: Iterable[int]) -> str:
    return ", ".join(map(str, layers))
