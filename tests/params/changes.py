"""The defaults with some keys changed, as a file would state them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline.errors import ParamsError
from pipeline.params.loader import params_from_dict
from pipeline.params.schema import Params
from pipeline.params.sections.dictionary import params_class
from tests import messages
from tests.messages import says

DEFAULTS = Params().to_dict()
ABSENT = object()


def changed(changes: Mapping[Any, Any]) -> dict[str, Any]:
    """The defaults with dotted keys set, or taken out by ABSENT."""
    values = copy.deepcopy(DEFAULTS)
    for dotted, value in changes.items():
        if not isinstance(dotted, str):
            values[dotted] = value
            continue
        *sections, key = dotted.split(".")
        place: Any = values
        for section in sections:
            place = place[section]
        if value is ABSENT:
            del place[key]
        else:
            place[key] = value
    return values


def faults(changes: Mapping[Any, Any]) -> dict[str, str]:
    """What is said of each faulty key of the defaults with these changes."""
    try:
        params_from_dict(changed(changes), source="params.yaml")
    except ParamsError as error:
        return messages.faults(error, "params.yaml")
    return {}


def one_fault(changes: Mapping[Any, Any], key: str, *parts: object) -> None:
    """These changes have one fault, of this key, and its message has the parts."""
    found = faults(changes)
    assert list(found) == [key], found
    says(found[key], *parts)


LORSA: dict[str, Any] = {
    **{f"dictionary.{field.name}": field.default for field in dataclasses.fields(params_class("lorsa"))},
    "dictionary.kind": "lorsa",
    "dictionary.hook_point_in": "blocks.1.ln1.hook_out",
    "dictionary.hook_point_out": "blocks.1.hook_attn_out",
    "dictionary.n_qk_heads": 4,
    "dictionary.d_qk_head": 8,
    "dictionary.n_ctx": 128,
    "dictionary.rotary_dim": 4,
    "activations.target": "activations-2d",
    "activations.batch_size": 8,
}
CLT: dict[str, Any] = {
    "dictionary.kind": "clt",
    "dictionary.hook_point_in": None,
    "dictionary.hook_points_in": ["blocks.0.ln2.hook_out", "blocks.1.ln2.hook_out"],
    "dictionary.hook_points_out": ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"],
    "dictionary.top_k_of": "layer",
}
TRANSCODER = {
    "dictionary.kind": "transcoder",
    "dictionary.hook_point_in": "blocks.2.ln2.hook_out",
    "dictionary.hook_point_out": "blocks.2.hook_mlp_out",
}
