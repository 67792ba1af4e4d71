"""Names of hook points: their order in a run, those of modules, and those of several models.

    blocks.2.hook_resid_post                     a site of a block, by its name
    module:model.layers.2.mlp.down_proj:input    what a module is given, or (`output`) gives, by its path
    alias:blocks.2.hook_resid_post               either of these, of another model

The alias is a key of the parameters' section `models`, and is never `module`; a hook point of the main model (section
`model`) has none. Stores, norms and dictionaries use these keys as the names of hook points, so that only what runs a model
takes them apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

MAIN = ""  # alias of the main model
# All sites that a block of any family has, in the order in which they occur in a run, with parallel and with sequential
# residuals; which of them a family has is lm/architectures.py's to say.
SITES = (
    "hook_resid_pre",
    "ln1.hook_normalized",
    "ln1.hook_out",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_z",
    "attn.hook_out",
    "ln1_post.hook_normalized",
    "ln1_post.hook_out",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_normalized",
    "ln2.hook_out",
    "mlp.hook_in",
    "mlp.hook_pre",
    "mlp.hook_pre_linear",
    "mlp.hook_post",
    "mlp.hook_out",
    "ln2_post.hook_normalized",
    "ln2_post.hook_out",
    "hook_mlp_out",
    "hook_resid_post",
)
# Sites of the model before and after its blocks.
BEFORE, AFTER = ("hook_embed",), ("ln_final.hook_normalized", "ln_final.hook_out")
MODULE = "module"
SIDES = ("input", "output")
# What the MLP of a block may be a function of: in most families ln2; ln1 where one norm is for attention and MLP, the residual
# stream where there is none before the MLP. Which of these it is, a model's family says.
MLP_INPUT = re.compile(r"blocks\.(\d+)\.(?:ln[12]\.(?:hook_out|hook_normalized)|mlp\.hook_in|hook_resid_mid)")
# What attention writes: what it adds, or in families that norm that first what it gives before.
ATTENTION_OUTPUT = re.compile(r"blocks\.(\d+)\.(?:hook_attn_out|attn\.hook_out)")
_NAME = re.compile(r"blocks\.(\d+)\.(.+)")


def split_key(key: str) -> tuple[str, str]:
    """(alias, hook point inside that model) of a key; the main model's alias is the empty string."""
    alias, colon, hook = key.partition(":")
    return (alias, hook) if colon and alias != MODULE else (MAIN, key)


def module_of(hook_point: str) -> tuple[str, str] | None:
    """(path, side) of `module:path:side`; None for another hook point, and for one that is not written so."""
    word, _, rest = hook_point.partition(":")
    path, _, side = rest.rpartition(":")
    return (path, side) if word == MODULE and path and side in SIDES else None


def join_key(alias: str, hook_point: str) -> str:
    """The key of a model's hook point."""
    return f"{alias}:{hook_point}" if alias else hook_point


def by_model(keys: Iterable[str]) -> dict[str, list[str]]:
    """{alias: hook points inside that model}, models in the order in which they occur first."""
    found: dict[str, list[str]] = {}
    for key in keys:
        alias, hook = split_key(key)
        found.setdefault(alias, []).append(hook)
    return found


def place_of(hook_point: str) -> tuple[float, int | None] | None:
    """(layer, index into SITES): the order of two is that in a run; layer is -1 before the blocks and infinity after them.

    A module's layer is the first number in its path, and its index None: where in the block it runs is not known by its
    name. None for a module without a number, and for another name.
    """
    if hook_point in BEFORE:
        return (-1, BEFORE.index(hook_point))
    if hook_point in AFTER:
        return (math.inf, AFTER.index(hook_point))
    module = module_of(hook_point)
    if module is not None:
        numbers = [int(part) for part in module[0].split(".") if part.isdecimal()]
        return (numbers[0], None) if numbers else None
    match = _NAME.fullmatch(hook_point)
    return (int(match[1]), SITES.index(match[2])) if match and match[2] in SITES else None


def occurs_before(first: str, second: str) -> bool:
    """Whether a hook point surely occurs before another one in a run, as far as their names say."""
    places, modules = (place_of(first), place_of(second)), (module_of(first), module_of(second))
    if None not in modules and modules[0][0] == modules[1][0]:  # type: ignore[index]
        return SIDES.index(modules[0][1]) < SIDES.index(modules[1][1])  # type: ignore[index]
    if places[0] is None or places[1] is None:
        return False
    (layer, order), (other, behind) = places[0], places[1]
    return layer < other or (layer == other and order is not None and behind is not None and order < behind)


def out_of_order(hook_points: Sequence[str]) -> str | None:
    """What is wrong with a list that should have the order of a run; names without a place stand anywhere."""
    for first, second in pairwise(hook for hook in hook_points if place_of(hook)):
        if occurs_before(second, first):
            return f"{second} occurs before {first} in a run; state hook points in that order"
    return None


def written_before_read(reads: Sequence[str], writes: Sequence[str]) -> str | None:
    """What is wrong with pairs of which one is written before what is read has occurred: its cause would be its effect."""
    for read, written in zip(reads, writes, strict=False):
        if occurs_before(written, read):
            return f"{written} occurs before {read} in a run, so that it cannot be computed from it; write a later one"
    return None
