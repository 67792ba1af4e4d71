"""Cross-layer transcoders, transcoders and low-rank sparse attention: what is accepted, and what each refusal says."""

from __future__ import annotations

from typing import Any

import pytest

from tests.params.changes import CLT, LORSA, TRANSCODER, faults

IN, OUT = "dictionary.hook_point_in", "dictionary.hook_point_out"
INS, OUTS = "dictionary.hook_points_in", "dictionary.hook_points_out"
MLPS = [f"blocks.{layer}.hook_mlp_out" for layer in range(3)]
LN2 = [f"blocks.{layer}.ln2.hook_out" for layer in range(3)]
POSITIONS, ROTARY_DIM = "dictionary.positional_embedding_type", "dictionary.rotary_dim"
NONE: dict[str, Any] = {POSITIONS: "none", ROTARY_DIM: None}
OF_EACH_HEAD = {"initializer.initialize_lorsa_with_mhsa": True, "initializer.initialize_W_D_with_active_subspace": True}
PARTS = {"dictionary.use_NTK_by_parts_rope": True}

TOGETHER: dict[str, Any] = {**CLT, "dictionary.act_fn": "layertopk", "dictionary.top_k_of": "token", "dictionary.d_model": 4}
K, FIRST_K = "dictionary.top_k", "trainer.initial_k"

ONE_FAULT: list[tuple[dict[str, Any], str]] = [
    # one k for the layers of a token
    ({"dictionary.top_k_of": "token"}, "dictionary.top_k_of: is a field of kind clt, not of sae, where it must be layer"),
    ({**TOGETHER, "dictionary.act_fn": "topk"}, "dictionary.top_k_of: topk has a budget for each layer; write layer"),
    ({**TOGETHER, "dictionary.act_fn": "relu"}, "dictionary.top_k_of: relu has no k; write layer"),
    ({**TOGETHER, K: 129}, f"{K}: 129 is more than the dictionary's 128 features"),
    ({**TOGETHER, "dictionary.top_k_of": "layer", K: 65}, f"{K}: 65 is more than the dictionary's 64 features"),
    ({**TOGETHER, FIRST_K: 129}, f"{FIRST_K}: 129 is more than the dictionary's 128 features"),
    # the order of a run
    ({**CLT, INS: LN2[1::-1]}, f"{INS}: {LN2[0]} occurs before {LN2[1]} in a run; state hook points in that order"),
    ({**CLT, INS: ["blocks.1.hook_resid_pre", LN2[0]]}, f"{INS}: {LN2[0]} occurs before blocks.1.hook_resid_pre in a run"),
    ({**CLT, OUTS: MLPS[2:0:-1]}, f"{OUTS}: {MLPS[1]} occurs before {MLPS[2]} in a run; state hook points in that order"),
    ({**CLT, INS: LN2[1:]}, f"{OUTS}: {MLPS[0]} occurs before {LN2[1]} in a run, so that it cannot be computed from it"),
    ({**CLT, OUTS: ["blocks.0.hook_attn_out", MLPS[1]]}, f"{OUTS}: blocks.0.hook_attn_out occurs before {LN2[0]} in a run"),
    ({**TRANSCODER, OUT: MLPS[1]}, f"{OUT}: {MLPS[1]} occurs before {LN2[2]} in a run, so that it cannot be computed from it"),
    ({**TRANSCODER, OUT: "blocks.2.hook_resid_pre"}, f"{OUT}: blocks.2.hook_resid_pre occurs before {LN2[2]} in a run"),
    ({IN: "blocks.2.hook_resid_post", OUT: MLPS[2]}, f"{OUT}: {MLPS[2]} occurs before blocks.2.hook_resid_post in a run"),
    ({**LORSA, OUT: "blocks.0.hook_attn_out"}, f"{OUT}: blocks.0.hook_attn_out occurs before blocks.1.ln1.hook_out in a run"),
    # what attention reads and writes
    *(
        (
            {**LORSA, IN: f"blocks.1.ln1.{site}", OUT: written},
            f"{OUT}: '{written}' is not what the attention that reads blocks.1.ln1.{site} writes; write blocks.1.hook_attn_out",
        )
        for site, written in (
            ("hook_out", "blocks.2.hook_mlp_out"),
            ("hook_out", "blocks.2.hook_attn_out"),
            ("hook_out", "blocks.1.hook_resid_post"),
            ("hook_normalized", "blocks.1.ln1.hook_out"),
        )
    ),
    (
        {**LORSA, IN: "blocks.1.ln2.hook_out", OUT: "blocks.2.hook_attn_out"},
        f"{IN}: 'blocks.1.ln2.hook_out' is what the MLP reads; write blocks.1.ln1.hook_out (or blocks.1.ln1.hook_normalized)",
    ),
    (
        {**LORSA, IN: "blocks.1.hook_resid_pre"},
        f"{IN}: 'blocks.1.hook_resid_pre' is not what attention reads; write blocks.1.ln1",
    ),
    (
        {**LORSA, "initializer.initialize_lorsa_with_mhsa": True, "initializer.model_layer": 2},
        "initializer.model_layer: the attention of layer 2 is no function of 'blocks.1.ln1.hook_out'; write null or 1",
    ),
    *(
        (
            {**LORSA, "initializer.initialize_lorsa_with_mhsa": True, "dictionary.norm_activation": norm, "fold.mode": "keep"},
            f"initializer.initialize_lorsa_with_mhsa: norm_activation {norm} has no one factor to divide queries and keys by",
        )
        for norm in ("token-wise", "batch-wise")
    ),
    (
        {**LORSA, **OF_EACH_HEAD, "initializer.d_active_subspace": 9},
        "initializer.d_active_subspace: 9 directions of each head do not fit in dictionary.d_qk_head 8",
    ),
    (
        {**LORSA, **OF_EACH_HEAD, "initializer.initialize_W_D_with_activations": True},
        "only one of these may set the decoder: initialize_W_D_with_activations, initialize_W_D_with_active_subspace, init",
    ),
    (
        {**LORSA, "dictionary.n_ctx": 127},
        "activations.context_size: 128 tokens are more than the 127 that the dictionary takes (dictionary.n_ctx)",
    ),
    # fields without effect
    ({**LORSA, **NONE, ROTARY_DIM: 4}, f"{POSITIONS}: is none, so that rotary_dim 4 has no effect; write rotary_dim: null"),
    (
        {**LORSA, **NONE, "dictionary.rotary_base": 500.0, "dictionary.rotary_adjacent_pairs": False},
        "rotary_base 500.0, rotary_adjacent_pairs false have no effect; write rotary_base: 10000.0, rotary_adjacent_pairs: true",
    ),
    (
        {**LORSA, **NONE, **PARTS, "dictionary.old_context_len": 4096},
        "use_NTK_by_parts_rope true, old_context_len 4096 have no effect; write use_NTK_by_parts_rope: false, old_context",
    ),
    (
        {**LORSA, "dictionary.NTK_by_parts_factor": 32.0},
        "dictionary.use_NTK_by_parts_rope: is false, so that NTK_by_parts_factor 32.0 has no effect; write NTK_by_parts_fac",
    ),
    (
        {**LORSA, "dictionary.normalization_type": "RMS"},
        "dictionary.normalization_type: RMS is the norm of use_post_qk_ln, which is false; write null or switch that on",
    ),
    # values that contradict each other
    (
        {**LORSA, **PARTS, "dictionary.NTK_by_parts_low_freq_factor": 4.0},
        "dictionary.NTK_by_parts_low_freq_factor: must be below NTK_by_parts_high_freq_factor 4.0, got 4.0",
    ),
    ({**LORSA, "dictionary.use_post_qk_ln": True}, "dictionary.normalization_type: use_post_qk_ln needs one: RMS or LN"),
    ({**LORSA, ROTARY_DIM: None}, f"{ROTARY_DIM}: an even number up to d_qk_head 8 (or positional_embedding_type none)"),
]


@pytest.mark.parametrize(("changes", "message"), ONE_FAULT)
def test_each_has_one_fault_with_its_message(changes: dict[str, Any], message: str) -> None:
    found = faults(changes)
    assert len(found) == 1, found
    assert message in found[0]


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
    assert faults(changes) == []
