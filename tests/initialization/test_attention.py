"""initialize_lorsa_with_mhsa: normalised input gives the model's own attention; features start in the heads' outputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.dictionaries.lorsa import LowRankSparseAttention
from pipeline.errors import NumericsError, ParamsError
from pipeline.initialization.attention import Subspace, set_attention_
from pipeline.initialization.compose import build_base, check, initialize_
from pipeline.lm.attention import AttentionWeights, ByParts
from pipeline.params.schema import InitializerParams
from pipeline.seeding import generator
from tests.initialization.cases import sample
from tests.messages import faults, saying, says

D, HEADS, WIDTH, N = 6, 2, 4, 10
CONFIG: dict[str, Any] = {
    "kind": "lorsa",
    "hook_point_in": "blocks.1.ln1.hook_out",
    "hook_point_out": "blocks.1.hook_attn_out",
    "d_in": D,
    "d_sae": 16,
    "act_fn": "topk",
    "top_k": 5,
    "n_qk_heads": 4,
    "d_qk_head": WIDTH,
    "n_ctx": 32,
    "rotary_dim": 2,
    "rotary_adjacent_pairs": False,
}


LLAMA3: dict[str, Any] = {"rope_type": "llama3", "by_parts": ByParts(32.0, 1.0, 4.0, 8192)}
PARTS: dict[str, Any] = {"use_NTK_by_parts_rope": True, "NTK_by_parts_factor": 32.0}


def model_attention(**changes: Any) -> AttentionWeights:
    draw = generator(0, "tests", "attention")

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    fields: dict[str, Any] = {name: drawn(HEADS, D, WIDTH) for name in ("W_Q", "W_K", "W_V")}
    fields |= {name: drawn(HEADS, WIDTH) for name in ("b_Q", "b_K", "b_V")}
    fields |= {"W_O": drawn(HEADS, WIDTH, D), "b_O": drawn(D), "q_gain": None, "k_gain": None, "eps": 1e-6}
    fields |= {"attn_scale": WIDTH**0.5, "sliding_window": None, "softcap": None}
    return AttentionWeights(**{**fields, "rotary_dim": 2, "rotary_base": 10000.0, "rope_type": "default", **changes})


def contexts() -> Tensor:
    return torch.randn(40, N, D, generator=generator(0, "tests", "contexts")) * 3 + 1


def started(attention: AttentionWeights, **fields: Any) -> tuple[Any, Any, Tensor]:
    """The dictionary, its sample and the raw input; labels are the heads' outputs of the raw input."""
    made = build_base({**CONFIG, **fields}, InitializerParams(), seed=0)
    x = contexts()
    taken = sample(made, x, 2 * x.flip(-1))
    return made, taken, x


def test_scores_of_normalised_input_are_the_models_own() -> None:
    attention = model_attention()
    made, taken, x = started(attention)
    set_attention_(made, taken, attention, seed=0)
    plain = build_base({**CONFIG, "n_qk_heads": HEADS, "d_sae": 16}, InitializerParams(), seed=0)
    with torch.no_grad():
        for name in ("W_Q", "W_K", "b_Q", "b_K"):
            plain.get_parameter(name).copy_(getattr(attention, name).float())
        found = made.attention(taken.x)  # type: ignore[operator]
        wanted = plain.attention(x)  # type: ignore[operator]
    torch.testing.assert_close(found, wanted.repeat_interleave(2, dim=1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_features_read_and_write_along_their_heads_centred_output() -> None:
    attention = model_attention()
    made, taken, x = started(attention)
    set_attention_(made, taken, attention, seed=0)
    _, s_out = taken.raw_scales()
    h = made.pre_activations(taken.x)
    for group in range(4):
        head = group // 2
        weights = made.attention(taken.x)[:, group]  # type: ignore[operator]
        y = s_out * (weights @ x) @ (attention.W_V[head] @ attention.W_O[head]).float()
        rows = made.w_O[group * 4 : group * 4 + 4]
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
        directions = torch.nn.functional.normalize((y - y.mean((0, 1))).flatten(0, 1), dim=-1)
        assert float((rows @ directions.T).max(1).values.min()) > 1 - 1e-4
        wanted = (y - y.mean((0, 1))) @ rows.T
        torch.testing.assert_close(h[..., group * 4 : group * 4 + 4], wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("d_active", [2, None])
def test_rows_fill_the_active_subspace_of_their_own_head(d_active: int | None) -> None:
    attention = model_attention(W_O=torch.diag(torch.tensor([4.0, 1.0, 0.3, 0.1])).double() @ model_attention().W_O)
    params = InitializerParams(
        initialize_lorsa_with_mhsa=True, initialize_W_D_with_active_subspace=True, d_active_subspace=d_active
    )
    made, taken, x = started(attention, d_sae=64)
    assert isinstance(made, LowRankSparseAttention)
    found = initialize_(made, taken, params, batch_rows=200, seed=0, model_attention=attention)
    _, s_out = taken.raw_scales()
    spans, ranks = [], []
    h = made.pre_activations(taken.x)
    for group in range(4):
        y = s_out * (made.attention(taken.x)[:, group] @ x) @ (attention.W_V[group // 2] @ attention.W_O[group // 2]).float()
        y = y.flatten(0, 1) - y.mean((0, 1))
        _, values, directions = torch.linalg.svd(y.double(), full_matrices=False)
        share = values.square() / values.square().sum()
        ranks.append(d_active or math.ceil(math.exp(-float((share * share.log()).sum()))))
        spans.append(directions[: ranks[-1]].float())
        own = slice(group * 16, group * 16 + 16)
        rows = torch.nn.functional.normalize(made.w_O[own], dim=-1)
        torch.testing.assert_close((rows @ spans[-1].T) @ spans[-1], rows, rtol=1e-3, atol=1e-3)
        assert torch.linalg.matrix_rank(rows, rtol=1e-3) == ranks[-1]
        torch.testing.assert_close(h[..., own].flatten(0, 1).mean(0), torch.zeros(16), rtol=0, atol=1e-3)
        size = float((h[..., own].flatten(0, 1) / (y @ rows.T)).median())
        torch.testing.assert_close(h[..., own].flatten(0, 1), size * (y @ rows.T), rtol=1e-2, atol=1e-3)
    assert found["d_active_subspace"] == max(ranks) < WIDTH
    other = (made.w_O[:16] @ spans[2].T) @ spans[2]
    assert float((other - made.w_O[:16]).norm() / made.w_O[:16].norm()) > 0.1  # another head's subspace is another
    assert not torch.allclose(made.w_O[:16], made.w_O[16:32])  # repeated heads have directions of their own


def test_more_directions_than_a_head_has_are_refused() -> None:
    attention = model_attention()
    made, taken, _ = started(attention)
    with pytest.raises(ParamsError, match=saying("initializer.d_active_subspace:", 5, 4)):
        set_attention_(made, taken, attention, 0, Subspace(5))


def test_a_head_whose_outputs_are_all_equal_is_refused() -> None:
    attention = model_attention(W_O=torch.zeros(HEADS, WIDTH, D, dtype=torch.float64))
    for subspace in (None, Subspace(None)):
        made, taken, _ = started(attention)
        with pytest.raises(NumericsError, match=saying("initializer.initialize_lorsa_with_mhsa:", "head 0", 400)):
            set_attention_(made, taken, attention, 0, subspace)


def test_the_start_is_scaled_and_has_less_error_than_none() -> None:
    """Through the whole initialisation, with labels that the attention itself makes."""
    attention = model_attention()
    params = InitializerParams(initialize_lorsa_with_mhsa=True, bias_init_method="mean")
    made = build_base(CONFIG, params, seed=0)
    x = contexts()
    model = build_base({**CONFIG, "n_qk_heads": HEADS}, InitializerParams(), seed=0)
    with torch.no_grad():
        for name in ("W_Q", "W_K", "b_Q", "b_K"):
            model.get_parameter(name).copy_(getattr(attention, name).float())
        mixed = model.attention(x) @ x[:, None]  # type: ignore[operator]
        labels = sum(mixed[:, h] @ (attention.W_V[h] @ attention.W_O[h]).float() for h in range(HEADS))
    taken = sample(made, x, labels)
    found = initialize_(made, taken, params, batch_rows=200, seed=0, model_attention=attention)
    assert found["least_squares_factor"] > 0
    with torch.no_grad():
        error = (made(taken.x) - taken.y).square().sum() / (taken.y - taken.y.mean((0, 1))).square().sum()
    assert float(error) < 0.9


@pytest.mark.parametrize(
    ("fields", "changes", "wanted"),
    [
        ({"d_qk_head": 6}, {}, {"d_qk_head": (4, "got 6")}),
        ({"n_qk_heads": 1}, {}, {"n_qk_heads": (2, "got 1")}),
        ({"rotary_adjacent_pairs": True}, {}, {"rotary_adjacent_pairs": ("false", "got true")}),
        ({"rotary_base": 500.0}, {}, {"rotary_base": (10000.0, "got 500.0")}),
        ({}, {"rotary_dim": 0}, {"positional_embedding_type": ("none", "got rotary")}),
        ({}, LLAMA3, {"use_NTK_by_parts_rope": ("true", "got false"), "NTK_by_parts_factor": (32.0, "got 8.0")}),
        ({}, {"attn_scale": 1.0}, {"attn_scale": (1.0, "got null")}),
        ({"attn_scale": 1.0}, {}, {"attn_scale": ("null", "got 1.0")}),
        ({}, {"rotary_scale": 4.0, "rope_type": "linear"}, {"rotary_scale": (4.0, "got 1.0")}),
        ({"rotary_scale": 4.0}, {}, {"rotary_scale": (1.0, "got 4.0")}),
        ({**PARTS, "NTK_by_parts_factor": 8.0}, LLAMA3, {"NTK_by_parts_factor": (32.0, "got 8.0")}),
        ({**PARTS, "NTK_by_parts_low_freq_factor": 2.0}, LLAMA3, {"NTK_by_parts_low_freq_factor": (1.0, "got 2.0")}),
        ({**PARTS, "NTK_by_parts_high_freq_factor": 5.0}, LLAMA3, {"NTK_by_parts_high_freq_factor": (4.0, "got 5.0")}),
        ({**PARTS, "old_context_len": 4096}, LLAMA3, {"old_context_len": (8192, "got 4096")}),
        ({}, {"rope_type": "yarn"}, {"positional_embedding_type": ("yarn", "lorsa", "default")}),
        ({}, {"sliding_window": 31}, {"n_ctx": ("sliding_window", 31, "got 32")}),
        ({}, {"softcap": 50.0}, {"initialize_lorsa_with_mhsa": ("attn_logit_softcapping", 50.0)}),
        (
            {},
            {"q_gain": torch.ones(2, 4), "k_gain": torch.ones(2, 4)},
            {"use_post_qk_ln": ("true", "got false"), "normalization_type": ("RMS", "got null")},
        ),
    ],
)
def test_heads_that_do_not_fit_are_refused(fields: dict[str, Any], changes: dict[str, Any], wanted: dict[str, Any]) -> None:
    attention = model_attention(**changes)
    made, taken, _ = started(attention, **fields)
    with pytest.raises(ParamsError) as error:
        set_attention_(made, taken, attention, seed=0)
    found = faults(error.value)
    assert [key.partition(".")[2] for key in found] == list(wanted)
    for message, parts in zip(found.values(), wanted.values(), strict=True):
        says(message, *parts)


def test_a_stated_root_of_the_width_and_a_window_as_long_as_the_context_fit() -> None:
    attention = model_attention(sliding_window=32)
    made, taken, _ = started(attention, attn_scale=2.0)
    set_attention_(made, taken, attention, seed=0)


def test_other_kinds_are_refused_by_name() -> None:
    params = InitializerParams(initialize_lorsa_with_mhsa=True)
    made = build_base({"kind": "sae", "d_in": 4, "d_sae": 8, "act_fn": "relu"}, params, seed=0)
    with pytest.raises(
        ParamsError, match=saying("initializer.initialize_lorsa_with_mhsa:", "dictionary.kind", "sae", "attention")
    ):
        check(made, params, has_model=True)
