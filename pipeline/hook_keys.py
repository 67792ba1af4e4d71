"""Names of hook points: their order in a run, and those of several models, `alias:blocks.2.hook_resid_post`.

The alias is a key of the parameters' section `models`; a hook point of the main model (section `model`) has none. Stores,
norms and dictionaries use these keys as the names of hook points, so that only what runs a model takes them apart.
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
_NAME = re.compile(r"blocks\.(\d+)\.(.+)")


def split_key(key: str) -> tuple[str, str]:
    """(alias, hook point inside that model) of a key; the main model's alias is the empty string."""
    alias, colon, hook = key.rpartition(":")
    return (alias, hook) if colon else (MAIN, key)


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


def place_of(hook_point: str) -> tuple[float, int] | None:
    """(layer, index into SITES): the order of two is that in a run; layer is -1 before the blocks and infinity after them.
    None for another name.
    """
    if hook_point in BEFORE:
        return (-1, BEFORE.index(hook_point))
    if hook_point in AFTER:
        return (math.inf, AFTER.index(hook_point))
    match = _NAME.fullmatch(hook_point)
    return (int(match[1]), SITES.index(match[2])) if match and match[2] in SITES else None


def out_of_order(hook_points: Sequence[str]) -> str | None:
    """What is wrong with a list that should have the order of a run; names without a place stand anywhere."""
    for first, second in pairwise(hook for hook in hook_points if place_of(hook)):
        if place_of(first) > place_of(second):  # type: ignore[operator]
            return f"{second} occurs before {first} in a run; state hook points in that order"
    return None


def written_before_read(reads: Sequence[str], writes: Sequence[str]) -> str | None:
    """What is wrong with pairs of which one is written before what is read has occurred: its cause would be its effect."""
    for read, written in zip(reads, writes, strict=False):
        places = place_of(read), place_of(written)
        if None not in places and places[1] < places[0]:  # type: ignore[operator]
            return f"{written} occurs before {read} in a run, so that it cannot be computed from it; write a later one"
    return None
