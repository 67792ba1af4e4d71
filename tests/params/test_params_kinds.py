"""Cross-layer transcoders, transcoders and low-rank sparse attention: what is accepted, and what each refusal says."""

from __future__ import annotations

from typing import Any

import pytest

from tests.messages import says
from tests.params.changes import CLT, LORSA, TRANSCODER, faults, one_fault

IN, OUT = "dictionary.hook_point_in", "dictionary.hook_point_out"
INS, OUTS = "dictionary.hook_points_in", "dictionary.hook_points_out"
MLPS = [f"blocks.{layer}.hook_mlp_out" for layer in range(3)]
LN2 = [f"blocks.{layer}.ln2.hook_out" for layer in range(3)]
POSITIONS, ROTARY_DIM = "dictionary.positional_embedding_type", "dictionary.rotary_dim"
NONE: dict[str, Any] = {POSITIONS: "none", ROTARY_DIM: None}
OF_EACH_HEAD = {"initializer.initialize_lorsa_with_mhsa": True, "initializer.initialize_W_D_with_active_subspace": True}
LN1 = ("blocks.1.ln1.hook_out", "blocks.1.ln1.hook_normalized")
NORM = "dictionary.normalization_type"
PARTS = {"dictionary.use_NTK_by_parts_rope": True}

TOGETHER: dict[str, Any] = {**CLT, "dictionary.act_fn": "layertopk", "dictionary.top_k_of": "token", "dictionary.d_model": 4}
K, FIRST_K = "dictionary.top_k", "trainer.initial_k"

ONE_FAULT: list[tuple[dict[str, Any], str, tuple[str, ...]]] = [
    # one k for the layers of a token
    ({"dictionary.top_k_of": "token"}, "dictionary.top_k_of", ("clt", "sae", "layer")),
    ({**TOGETHER, "dictionary.act_fn": "topk"}, "dictionary.top_k_of", ("topk", "each layer")),
    ({**TOGETHER, "dictionary.act_fn": "relu"}, "dictionary.top_k_of", ("relu", "no k")),
    ({**TOGETHER, K: 129}, K, ("129", "128")),
    ({**TOGETHER, "dictionary.top_k_of": "layer", K: 65}, K, ("65", "64")),
    ({**TOGETHER, FIRST_K: 129}, FIRST_K, ("129", "128")),
    # the order of a run: of the two names the earlier one comes first
    ({**CLT, INS: LN2[1::-1]}, INS, (f"{LN2[0]} occurs before {LN2[1]}",)),
    ({**CLT, INS: ["blocks.1.hook_resid_pre", LN2[0]]}, INS, (f"{LN2[0]} occurs before blocks.1.hook_resid_pre",)),
    ({**CLT, OUTS: MLPS[2:0:-1]}, OUTS, (f"{MLPS[1]} occurs before {MLPS[2]}",)),
    ({**CLT, INS: LN2[1:]}, OUTS, (f"{MLPS[0]} occurs before {LN2[1]}", "later")),
    ({**CLT, OUTS: ["blocks.0.hook_attn_out", MLPS[1]]}, OUTS, (f"blocks.0.hook_attn_out occurs before {LN2[0]}", "later")),
    ({**TRANSCODER, OUT: MLPS[1]}, OUT, (f"{MLPS[1]} occurs before {LN2[2]}", "later")),
    ({**TRANSCODER, OUT: "blocks.2.hook_resid_pre"}, OUT, (f"blocks.2.hook_resid_pre occurs before {LN2[2]}", "later")),
    ({IN: "blocks.2.hook_resid_post", OUT: MLPS[2]}, OUT, (f"{MLPS[2]} occurs before blocks.2.hook_resid_post", "later")),
    ({**LORSA, OUT: "blocks.0.hook_attn_out"}, OUT, ("blocks.0.hook_attn_out occurs before blocks.1.ln1.hook_out", "later")),
    # what attention reads and writes
    *(
        ({**LORSA, IN: f"blocks.1.ln1.{site}", OUT: written}, OUT, (written, f"blocks.1.ln1.{site}", "blocks.1.hook_attn_out"))
        for site, written in (
            ("hook_out", "blocks.2.hook_mlp_out"),
            ("hook_out", "blocks.2.hook_attn_out"),
            ("hook_out", "blocks.1.hook_resid_post"),
            ("hook_normalized", "blocks.1.ln1.hook_out"),
        )
    ),
    ({**LORSA, IN: "blocks.1.ln2.hook_out", OUT: "blocks.2.hook_attn_out"}, IN, ("blocks.1.ln2.hook_out", "MLP", *LN1)),
    ({**LORSA, IN: "blocks.1.hook_resid_pre"}, IN, ("blocks.1.hook_resid_pre", *LN1)),
    (
        {**LORSA, "initializer.initialize_lorsa_with_mhsa": True, "initializer.model_layer": 2},
        "initializer.model_layer",
        ("2", "blocks.1.ln1.hook_out", "null", "1"),
    ),
    *(
        (
            {**LORSA, "initializer.initialize_lorsa_with_mhsa": True, "dictionary.norm_activation": norm, "fold.mode": "keep"},
            "initializer.initialize_lorsa_with_mhsa",
            (f"norm_activation {norm}", "dataset-wise"),
        )
        for norm in ("token-wise", "batch-wise")
    ),
    (
        {**LORSA, **OF_EACH_HEAD, "initializer.d_active_subspace": 9},
        "initializer.d_active_subspace",
        ("9", "dictionary.d_qk_head", "8"),
    ),
    (
        {**LORSA, **OF_EACH_HEAD, "initializer.initialize_W_D_with_activations": True},
        "initializer.initialize_W_D_with_active_subspace",
        ("initialize_W_D_with_activations", "initialize_W_D_with_active_subspace", "initialize_lorsa_with_mhsa"),
    ),
    ({**LORSA, "dictionary.n_ctx": 127}, "activations.context_size", ("128", "127", "dictionary.n_ctx")),
    # fields without effect
    ({**LORSA, **NONE, ROTARY_DIM: 4}, POSITIONS, ("none", "rotary_dim 4", "rotary_dim: null")),
    (
        {**LORSA, **NONE, "dictionary.rotary_base": 500.0, "dictionary.rotary_adjacent_pairs": False},
        POSITIONS,
        ("none", "500.0", "false", "rotary_base: 10000.0", "rotary_adjacent_pairs: true"),
    ),
    (
        {**LORSA, **NONE, **PARTS, "dictionary.old_context_len": 4096},
        POSITIONS,
        ("none", "true", "4096", "use_NTK_by_parts_rope: false", "old_context_len: 8192"),
    ),
    (
        {**LORSA, "dictionary.NTK_by_parts_factor": 32.0},
        "dictionary.use_NTK_by_parts_rope",
        ("false", "32.0", "NTK_by_parts_factor: 8.0"),
    ),
    ({**LORSA, "dictionary.normalization_type": "RMS"}, NORM, ("RMS", "use_post_qk_ln", "false", "null")),
    # values that contradict each other
    (
        {**LORSA, **PARTS, "dictionary.NTK_by_parts_low_freq_factor": 4.0},
        "dictionary.NTK_by_parts_low_freq_factor",
        ("NTK_by_parts_high_freq_factor 4.0", "got 4.0"),
    ),
    ({**LORSA, "dictionary.use_post_qk_ln": True}, NORM, ("use_post_qk_ln", "RMS", "LN")),
    ({**LORSA, ROTARY_DIM: None}, ROTARY_DIM, ("d_qk_head 8", "positional_embedding_type none")),
]


@pytest.mark.parametrize(("changes", "key", "parts"), ONE_FAULT, ids=[key for _, key, _ in ONE_FAULT])
def test_each_has_one_fault(changes: dict[str, Any], key: str, parts: tuple[str, ...]) -> None:
    one_fault(changes, key, *parts)


@pytest.mark.parametrize(
    "changes",
    [
        CLT,
        {**CLT, INS: LN2, OUTS: MLPS},
        {**CLT, INS: [LN2[0], LN2[2]], OUTS: [MLPS[1], MLPS[2]]},
        {**CLT, INS: ["blocks.0.ln1.hook_out", LN2[0]], OUTS: ["blocks.0.hook_attn_out", MLPS[0]]},
        TRANSCODER,
        {**TRANSCODER, IN: "blocks.0.hook_resid_pre", OUT: "blocks.2.hook_resid_post"},
        {**TRANSCODER, IN: "blocks.2.ln1.hook_normalized", OUT: "blocks.2.ln1.hook_out"},
        LORSA,
        {**LORSA, IN: "blocks.1.ln1.hook_normalized"},
        {**LORSA, **NONE},
        {**LORSA, **PARTS, "dictionary.NTK_by_parts_factor": 32.0, "dictionary.rotary_base": 500000.0},
        {**LORSA, "dictionary.use_post_qk_ln": True, "dictionary.normalization_type": "LN"},
        {**LORSA, "initializer.initialize_lorsa_with_mhsa": True, "initializer.model_layer": 1},
        {**LORSA, **OF_EACH_HEAD, "initializer.d_active_subspace": 8},
        {**LORSA, "dictionary.norm_activation": "token-wise", "fold.mode": "keep"},
        {**LORSA, "initializer.initialize_lorsa_with_mhsa": True, "dictionary.norm_activation": "dataset-rms"},
    ],
)
def test_what_the_model_could_compute_is_accepted(changes: dict[str, Any]) -> None:
    assert faults(changes) == {}


SAYS_WHAT_TO_WRITE: list[tuple[dict[str, Any], str, str]] = [
    ({**TRANSCODER, "dictionary.apply_b_dec_to_input": True}, "dictionary.apply_b_dec_to_input", "write false"),
    (
        {
            "dictionary.apply_b_dec_to_input": True,
            "dictionary.use_decoder_bias": False,
            "initializer.bias_init_method": "all_zero",
        },
        "dictionary.apply_b_dec_to_input",
        "write false",
    ),
    ({"dictionary.skip": True}, "dictionary.skip", "write false"),
    ({**TRANSCODER, OUT: None}, OUT, "blocks.L.hook_mlp_out"),
    ({**CLT, OUTS: LN2[:2]}, OUTS, "write another hook point of that layer"),
    ({**CLT, OUTS: [MLPS[1], MLPS[1]]}, OUTS, "write each once"),
    ({**CLT, INS: LN2[:1], OUTS: MLPS[:1]}, INS, "write a list of them"),
    ({**CLT, "trainer.decoder_constraint": "unit_norm"}, "trainer.decoder_constraint", "write none"),
    ({**LORSA, "dictionary.n_ctx": None}, "dictionary.n_qk_heads", "write a number"),
    ({**LORSA, "dictionary.d_model": 4, "dictionary.n_qk_heads": 5}, "dictionary.n_qk_heads", "write 4"),
    ({**LORSA, ROTARY_DIM: 3}, ROTARY_DIM, "write an even number"),
    ({**LORSA, "dictionary.use_post_qk_ln": True}, NORM, "write RMS or LN"),
    ({"initializer.initialize_tc_with_mlp": True}, "initializer.initialize_tc_with_mlp", "write false"),
    ({"initializer.initialize_lorsa_with_mhsa": True}, "initializer.initialize_lorsa_with_mhsa", "write false"),
    ({"dictionary.act_fn": "relu", "fold.convert_topk_to_jumprelu": True}, "fold.convert_topk_to_jumprelu", "write false"),
    ({"dictionary.d_model": 1, "dictionary.expansion_factor": 0.5}, "dictionary.expansion_factor", "raise it"),
]


@pytest.mark.parametrize(("changes", "key", "wanted"), SAYS_WHAT_TO_WRITE)
def test_a_refusal_about_a_kind_says_what_to_write(changes: dict[str, Any], key: str, wanted: str) -> None:
    says(faults(changes)[key], wanted)
