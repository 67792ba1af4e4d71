"""Hook points by the names of other tools: module paths of transformers, and what TransformerLens and its relatives call them.

    layers.5, gpt_neox.layers.5, h.5, model.layers.5.output     blocks.5.hook_resid_post
    layers.5.mlp                                                blocks.5.hook_mlp_out, its input blocks.5.ln2.hook_out
    layers.5.attention, .self_attn, .attn                       blocks.5.hook_attn_out, its input blocks.5.ln1.hook_out

A name that means none of our hook points stays as it is; whether the model has it is asked where the model is known.
"""

from __future__ import annotations

import re

from pipeline.errors import DataError

_MODULE = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)(?:\.(.+?))??(\.input|\.output)?")
_OUTPUTS = {
    None: "hook_resid_post",
    "mlp": "hook_mlp_out",
    "attention": "hook_attn_out",
    "self_attn": "hook_attn_out",
    "attn": "hook_attn_out",
    "input_layernorm": "ln1.hook_out",
    "ln_1": "ln1.hook_out",
    "post_feedforward_layernorm": "hook_mlp_out",
    "pre_feedforward_layernorm": "ln2.hook_out",
    "ln_2": "ln2.hook_out",
}
_INPUTS = {
    None: "hook_resid_pre",
    "mlp": "ln2.hook_out",
    "attention": "ln1.hook_out",
    "self_attn": "ln1.hook_out",
    "attn": "ln1.hook_out",
    "self_attn.o_proj": "attn.hook_z",
}
# The same places by other names that end a hook point.
_OTHER = {
    "mlp.hook_in": "ln2.hook_out",
    "mlp.hook_out": "hook_mlp_out",
    "hook_in": "hook_resid_pre",
    "hook_out": "hook_resid_post",
}
_FAMILY = {"gpt_neox": ("layers", "attention"), "gpt2": ("h", "attn")}
_OTHER_FAMILIES = ("layers", "self_attn")


def hook_of_module(path: str, *, reads: bool = False) -> str:
    """The hook point of a module's output, or with `reads` (or where the path ends in .input) of its input.

    Raises:
        DataError: no hook point of this module is known.
    """
    match = _MODULE.fullmatch(path)
    names = _INPUTS if reads or (match and match[3] == ".input") else _OUTPUTS
    if match is None or match[2] not in names:
        known = ", ".join(f"layers.N{'.' + name if name else ''}" for name in names)
        raise DataError(
            f"hook point '{path}': no hook point of this module is known (known: {known}); name it by --hook-point-in and "
            "--hook-point-out"
        )
    return f"blocks.{match[1]}.{names[match[2]]}"


def ours(name: str) -> str:
    """A TransformerLens name, by the one that we have for the place."""
    match = re.fullmatch(r"(blocks\.\d+)\.(.+)", name)
    return f"{match[1]}.{_OTHER.get(match[2], match[2])}" if match else name


def layer_and_site(hook: str) -> tuple[int, str] | None:
    """(layer, name inside its block) of a hook point; None of another name."""
    match = re.fullmatch(r"(?:.*:)?blocks\.(\d+)\.(.+)", hook)
    return (int(match[1]), match[2]) if match else None


def module_of_hook(hook: str, model_type: str | None = None) -> str | None:
    """The module, relative to the model without its head, whose output a hook point is; None if it is no module's.

    Args:
        hook: blocks.L.name.
        model_type: of the model; None: not known, then names are those of most families.
    """
    place = layer_and_site(hook)
    if place is None:
        return None
    blocks, attention = _FAMILY.get(model_type or "", _OTHER_FAMILIES)
    modules = {"hook_resid_post": "", "hook_mlp_out": ".mlp", "hook_attn_out": f".{attention}"}
    return f"{blocks}.{place[0]}{modules[place[1]]}" if place[1] in modules else None
