"""Configurations are read strictly, all faults at once."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.dictionaries.build import build_dictionary, config_from_dict
from pipeline.errors import ParamsError
from tests.dictionaries.make import LAYERS_IN, LAYERS_OUT

BASE: dict[str, Any] = {"kind": "sae", "d_in": 8, "d_sae": 16}


def faults(**config: Any) -> list[str]:
    with pytest.raises(ParamsError) as error:
        build_dictionary({**BASE, **config})
    return error.value.faults


@pytest.mark.parametrize(
    ("config", "key", "parts"),
    [
        ({"actfn": "topk"}, "dictionary.actfn", ("unknown key", "'act_fn'")),
        ({"act_fn": "top_k"}, "dictionary.act_fn", ("'topk'",)),
        ({"act_fn": 3}, "dictionary.act_fn", ("string", "3")),
        ({"kind": "saes"}, "dictionary.kind", ("'saes'", "'sae'")),
        ({"top_k": 0}, "dictionary.top_k", ("at least 1", "got 0")),
        ({"top_k": 2.5}, "dictionary.top_k", ("integer", "2.5")),
        ({"skip": True}, "dictionary.skip", ("only a transcoder",)),
        ({"skip": "yes"}, "dictionary.skip", ("true or false", "'yes'")),
        ({"d_model": 9}, "dictionary.d_model", ("9 contradicts d_in 8",)),
        ({"expansion_factor": 4}, "dictionary.d_sae", ("16", "expansion_factor 4", "32")),
        ({"expansion_factor": -1}, "dictionary.expansion_factor", ("positive", "got -1")),
        ({"d_out": 4}, "dictionary.d_out", ("4", "d_in 8")),
        ({"norm_activation": "datasetwise"}, "dictionary.norm_activation", ("'dataset-wise'",)),
        ({"norm_activation": "inference"}, "dictionary.norm_activation", ("folded", "False")),
        ({"dtype": "float31"}, "dictionary.dtype", ("'float32'",)),
        ({"jumprelu_threshold_window": 0.0}, "dictionary.jumprelu_threshold_window", ("greater than 0", "got 0.0")),
        ({"use_triton_kernel": "on"}, "dictionary.use_triton_kernel", ("auto", "'on'")),
        ({"apply_b_dec_to_input": True, "use_decoder_bias": False}, "dictionary.apply_b_dec_to_input", ("use_decoder_bias",)),
        ({"apply_b_dec_to_input": True, "hook_point_out": "b"}, "dictionary.apply_b_dec_to_input", ("SAE only",)),
        ({"kind": "transcoder", "hook_point_in": "a"}, "dictionary.hook_point_out", ("transcoder", "'a'")),
        ({"decoder_uniform_bound": 0.0}, "initializer.decoder_uniform_bound", ("greater than 0", "got 0.0")),
        ({"init_encoder_with_decoder_transpose": 1}, "initializer.init_encoder_with_decoder_transpose", ("true or false", "1")),
        ({"init_log_jumprelu_threshold_value": "0.1"}, "initializer.init_log_jumprelu_threshold_value", ("'0.1'",)),
    ],
)
def test_a_fault_is_named(config: dict[str, Any], key: str, parts: tuple[str, ...]) -> None:
    (fault,) = faults(**config)
    assert fault.startswith(f"{key}: ")
    assert all(part in fault for part in parts), fault


def test_all_faults_come_at_once() -> None:
    found = faults(actfn="topk", top_k="4", skip=None)
    assert len(found) == 3
    with pytest.raises(ParamsError) as error:
        config_from_dict({"kind": "sae"})
    assert [fault.split(":")[0] for fault in error.value.faults] == [
        "dictionary.d_in",
        "dictionary.d_sae",
    ]


def test_a_missing_kind_lists_the_kinds() -> None:
    with pytest.raises(ParamsError, match=r"dictionary.kind: missing \(known: clt, crosscoder, lorsa, sae, transcoder\)"):
        config_from_dict({"d_in": 8})


def test_widths_and_hook_points() -> None:
    sae = config_from_dict({"kind": "sae", "d_model": 10, "expansion_factor": 1.55, "hook_point_in": "h"})
    assert (sae.d_in, sae.d_out, sae.d_sae) == (10, 10, 15)
    assert sae.hooks_in == sae.hooks_out == ("h",)
    transcoder = config_from_dict({"kind": "transcoder", "d_in": 4, "d_out": 6, "d_sae": 8})
    assert (transcoder.hooks_in, transcoder.hooks_out) == (("input",), ("output",))
    between = config_from_dict({**BASE, "hook_point_in": "a", "hook_point_out": "b", "d_out": 3, "skip": True})
    assert between.hooks_out == ("b",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"kind": "transcoder", "hook_point_in": "blocks.1.ln2.hook_out", "hook_point_out": "blocks.0.hook_mlp_out"},
            "hook_point_",
        ),
        (
            {"kind": "lorsa", "hook_point_in": "blocks.1.ln1.hook_out", "hook_point_out": "blocks.0.hook_attn_out"}
            | {"n_qk_heads": 2, "d_qk_head": 4, "n_ctx": 8, "rotary_dim": 4},
            "hook_point_out: blocks.0.hook_attn_out occurs before",
        ),
        ({"kind": "clt", "hook_points_in": LAYERS_IN[::-1], "hook_points_out": LAYERS_OUT}, "hook_points_in: blocks.1"),
        ({"kind": "clt", "hook_points_in": LAYERS_IN, "hook_points_out": LAYERS_OUT[::-1]}, "hook_points_out: blocks.1"),
        ({"kind": "clt", "hook_points_in": LAYERS_IN[1:], "hook_points_out": LAYERS_OUT[:2]}, "hook_points_out: blocks.0"),
    ],
)
def test_what_would_be_written_before_it_is_read_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        build_dictionary({"d_in": 4, "d_sae": 8, "act_fn": "relu", **fields})
