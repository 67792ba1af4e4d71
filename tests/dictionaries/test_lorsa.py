"""Low-rank sparse attention against explicit softmax attention, causality, rotary embeddings, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.dictionaries.build import build_dictionary
from pipeline.dictionaries.rotary import Rotary
from pipeline.errors import DataError, ParamsError
from pipeline.seeding import generator
from tests.dictionaries.make import filled, inputs

Q, WIDTH, F, D = 4, 6, 20, 6
FIELDS: dict[str, Any] = {
    "kind": "lorsa",
    "hook_point_in": "a",
    "hook_point_out": "b",
    "n_qk_heads": Q,
    "d_qk_head": WIDTH,
    "n_ctx": 64,
    "rotary_dim": 4,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"positional_embedding_type": "none", "rotary_dim": None, "attn_scale": 1.7},
    {"rotary_adjacent_pairs": False, "rotary_base": 50.0, "rotary_scale": 2.0},
    {"use_post_qk_ln": True, "normalization_type": "RMS"},
    {"use_post_qk_ln": True, "normalization_type": "LN", "eps": 0.1, "sparsity_include_decoder_norm": False},
    {"d_qk_head": 2, "rotary_dim": 2, "d_sae": 40},
]


def contexts(b: int, n: int, seed: int = 0) -> Tensor:
    return inputs(b * n, D, seed).reshape(b, n, D)


def turned(vector: list[float], position: int, config: Any) -> list[float]:
    """Rotary embedding of one vector, pair by pair."""
    if config.positional_embedding_type == "none":
        return vector
    out, r = list(vector), config.rotary_dim
    for i in range(r // 2):
        one, two = (2 * i, 2 * i + 1) if config.rotary_adjacent_pairs else (i, i + r // 2)
        angle = position / config.rotary_scale * config.rotary_base ** (-2 * i / r)
        c, s = math.cos(angle), math.sin(angle)
        out[one], out[two] = vector[one] * c - vector[two] * s, vector[one] * s + vector[two] * c
    return out


def normed(vector: list[float], gain: list[float], config: Any) -> list[float]:
    if not config.use_post_qk_ln:
        return vector
    if config.normalization_type == "LN":
        mean = sum(vector) / len(vector)
        vector = [v - mean for v in vector]
    root = math.sqrt(sum(v * v for v in vector) / len(vector) + config.eps)
    return [v / root * g for v, g in zip(vector, gain, strict=True)]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_equals_explicit_softmax_attention(variant: int) -> None:
    made = filled(act_fn="relu", **{**FIELDS, **VARIANTS[variant]})
    c, n = made.config, 5
    x = contexts(2, n)
    there, kept = torch.tensor([[True] * 5, [True, False, True, True, False]]), torch.tensor([[True, True, False] * 3 + [True]])
    kept = kept.reshape(2, n)
    codes, x_hat = made.run(x, kept, padding=~there)
    w = {name: tensor.tolist() for name, tensor in made.state_dict().items()}
    gains = [[1.0] * c.d_qk_head] * Q
    scale = getattr(c, "attn_scale", None) or math.sqrt(c.d_qk_head)  # type: ignore[attr-defined]
    for b in range(2):
        rows = x[b].tolist()
        h = [[0.0] * c.d_sae for _ in range(n)]
        for g in range(Q):
            q, k = (
                [
                    turned(
                        normed(
                            [dot(row, [w[W][g][d][e] for d in range(D)]) + w[bias][g][e] for e in range(c.d_qk_head)],
                            w.get(gain, gains)[g],
                            c,
                        ),
                        t,
                        c,
                    )
                    for t, row in enumerate(rows)
                ]
                for W, bias, gain in (("W_Q", "b_Q", "q_gain"), ("W_K", "b_K", "k_gain"))
            )
            for t in range(n):
                keys = [s for s in range(t + 1) if bool(there[b, s]) or s == t]
                scores = [math.exp(dot(q[t], k[s]) / scale) for s in keys]
                for i in range(g * c.d_sae // Q, (g + 1) * c.d_sae // Q):
                    values = [dot(rows[s], w["w_V"][i]) + w["b_V"][i] for s in keys]
                    h[t][i] = dot(scores, values) / sum(scores)
        torch.testing.assert_close(codes.h[b], torch.tensor(h, dtype=torch.float64), rtol=1e-10, atol=1e-12)
        for t in range(n):
            f = [max(value, 0.0) if bool(kept[b, t] & there[b, t]) else 0.0 for value in h[t]]
            wanted = [w["b_D"][d] + sum(f[i] * w["w_O"][i][d] for i in range(c.d_sae)) for d in range(D)]
            torch.testing.assert_close(x_hat[b, t], torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_later_tokens_change_nothing() -> None:
    made = filled(act_fn="relu", **FIELDS)
    x = contexts(1, 9)
    for t in range(9):
        other = x.clone()
        other[:, t:] += 1.0
        same = made.pre_activations(other)[:, :t]
        torch.testing.assert_close(same, made.pre_activations(x)[:, :t], rtol=1e-12, atol=1e-12)
        if t < 8:
            assert not torch.allclose(made.pre_activations(other)[:, 8], made.pre_activations(x)[:, 8])


@torch.no_grad()
def test_the_z_pattern_sums_to_the_pre_activation() -> None:
    made = filled(act_fn="relu", **FIELDS)
    x, padding = contexts(2, 7), torch.arange(14).reshape(2, 7) % 5 == 0
    chosen = torch.tensor([0, 7, 19])
    z = made.z_pattern(x, chosen, padding)  # type: ignore[operator]
    assert z.shape == (2, 3, 7, 7)
    assert float(z.triu(1).abs().max()) == 0.0
    h = made.pre_activations(x, padding)[..., chosen]
    torch.testing.assert_close(z.sum(-1).transpose(1, 2), h, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("fields", [{}, {"attn_scale": 3.0}, {"use_post_qk_ln": True, "normalization_type": "RMS"}])
def test_token_sources_are_rows_of_the_z_pattern(padded: bool, fields: dict[str, object]) -> None:
    made = filled(act_fn="relu", **{**FIELDS, **fields})
    x, padding = contexts(2, 7), (torch.arange(14).reshape(2, 7) % 5 == 0 if padded else None)
    sources = made.token_sources(x, padding)
    assert sources is not None
    every = torch.cartesian_prod(torch.arange(2), torch.arange(7), torch.arange(20))
    context, token, feature = every.T
    z = made.z_pattern(x, torch.arange(20), padding)  # type: ignore[operator]
    torch.testing.assert_close(sources(context, token, feature), z[context, feature, token], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("padded", [False, True])
def test_training_holds_no_square_of_the_context_for_each_head(padded: bool) -> None:
    made = build_dictionary({**FIELDS, "d_in": D, "d_sae": 64, "act_fn": "topk", "top_k": 4, "n_ctx": 512})
    b, n = 2, 512
    x = torch.randn(b, n, D, generator=generator(0, "tests", "lorsa"))
    padding = torch.arange(b * n).reshape(b, n) % 7 == 0 if padded else None
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes())
            return out

    with Watch():
        made.run(x, padding=padding)[1].square().sum().backward()
    assert 0 < largest < b * Q * n * n * 4 / 2


def neox_tables(dim: int, base: float, n: int, **config: Any) -> tuple[Tensor, Tensor]:
    from transformers import GPTNeoXConfig
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

    parameters = {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": 1.0}
    made = GPTNeoXRotaryEmbedding(GPTNeoXConfig(hidden_size=dim, num_attention_heads=1, rope_parameters=parameters))
    return made(torch.zeros(1, n, dim), torch.arange(n)[None])


def llama_tables(dim: int, base: float, n: int, **scaling: Any) -> tuple[Tensor, Tensor]:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    parameters = {"rope_type": "default", "rope_theta": base, **scaling}
    made = LlamaRotaryEmbedding(LlamaConfig(hidden_size=dim, num_attention_heads=1, head_dim=dim, rope_parameters=parameters))
    return made(torch.zeros(1, n, dim), torch.arange(n)[None])


PARTS = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}


@pytest.mark.parametrize(
    ("tables", "scaling"),
    [(neox_tables, {}), (llama_tables, {}), (llama_tables, {"rope_type": "llama3", **PARTS})],
    ids=["gpt_neox", "llama", "llama3"],
)
def test_halves_are_rotated_as_transformers_does(tables: Any, scaling: dict[str, Any]) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    dim, n = 16, 300
    x = inputs(2 * n, dim, dtype=torch.float32).reshape(1, 2, n, dim)
    cos, sin = tables(dim, 500.0, n, **scaling)
    wanted, _ = apply_rotary_pos_emb(x, x, cos, sin)
    made = Rotary(dim, 500.0, adjacent_pairs=False, by_parts=bool(scaling), old_context_len=256)
    torch.testing.assert_close(made.rotate(x), wanted, rtol=1e-4, atol=1e-4)


def test_the_two_pairings_differ_by_a_permutation() -> None:
    x = inputs(30, 8).reshape(1, 1, 30, 8)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    halves = Rotary(8, 100.0, adjacent_pairs=False).rotate(x[..., order])
    torch.testing.assert_close(Rotary(8, 100.0, adjacent_pairs=True).rotate(x)[..., order], halves)


def test_scores_depend_on_distance_only() -> None:
    """q at t and k at s: the score is that of q at t + 5 and k at s + 5; dimensions beyond rotary_dim are left alone."""
    made = Rotary(4, 10.0)
    q, k = (inputs(1, 6, seed)[0].expand(20, 6) for seed in (1, 2))
    scores = made.rotate(q) @ made.rotate(k).T
    torch.testing.assert_close(scores[5:, 5:], scores[:-5, :-5])
    assert torch.equal(made.rotate(q)[:, 4:], q[:, 4:])


def test_configurations_that_make_no_sense_are_refused() -> None:
    def build(**fields: Any) -> None:
        build_dictionary({**FIELDS, "d_in": 4, "d_sae": 8, **fields})

    for fields, message in (
        ({"n_qk_heads": 3}, "n_qk_heads: 3 does not divide .* 8 features"),
        ({"hook_point_out": "a"}, "hook_point_out: .*'a'"),
        ({"rotary_dim": 3}, "rotary_dim: write an even number .*d_qk_head 6.*got 3"),
        ({"rotary_dim": 8}, "rotary_dim: write an even number .*d_qk_head 6.*got 8"),
        ({"rotary_dim": None}, "rotary_dim: write an even number .*d_qk_head 6.*got None"),
        (
            {"use_NTK_by_parts_rope": True, "NTK_by_parts_low_freq_factor": 4.0},
            r"NTK_by_parts_low_freq_factor: must be below NTK_by_parts_high_freq_factor 4\.0, got 4\.0",
        ),
        ({"use_post_qk_ln": True}, "use_post_qk_ln needs one"),
        ({"n_ctx": 0}, "n_ctx: must be at least 1, got 0"),
    ):
        with pytest.raises(ParamsError, match=message):
            build(**fields)
    made = build_dictionary({**FIELDS, "d_in": D, "d_sae": 8, "n_ctx": 4})
    with pytest.raises(ParamsError, match="n_ctx: 4 is less than the context of 5 tokens"):
        made(contexts(1, 5).float())
    for x in (torch.zeros(3, D), torch.zeros(D), torch.zeros(1, 2, 3, D)):
        for call in (made, made.pre_activations, made.token_sources):
            with pytest.raises(DataError, match=r"reads contexts: activations should be \[n, T, D\], got shape \["):
                call(x)
