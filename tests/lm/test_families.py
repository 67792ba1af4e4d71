"""What the configurations of families can say of windows, embeddings, rotary scalings and vocabularies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.lm.language_model import LanguageModel
from pipeline.lm.loading import load_language_model
from tests.lm.conftest import CONFIGURATIONS
from tests.lm.families import CONTEXT, VOCAB, WINDOW, D, write_model

Make = Callable[..., LanguageModel]
LAST = 16  # of 17 tokens
# Families with windows: (settings, a layer with the window, one without or None).
WINDOWS: dict[str, tuple[dict[str, Any], int, int | None]] = {
    "mistral": ({}, 1, None),
    "mixtral": ({}, 1, None),
    "phi3": ({}, 1, None),
    "gemma2": ({}, 0, 1),
    "gemma3": ({}, 0, 1),
    "olmo3": ({}, 0, 1),
    "gpt_oss": ({}, 0, 1),
}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """(name, settings) -> a model of that configuration with these changes."""

    def made(name: str, **changes: Any) -> LanguageModel:
        model_type, options = CONFIGURATIONS[name]
        directory = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"
        write_model(directory, model_type, {**options, **changes})
        return load_language_model(directory, device="cpu")

    return made


def reads(model: LanguageModel, layer: int, token_ids: torch.Tensor, back: int) -> bool:
    """Whether the heads at the last token read the token so far back: it alone is changed, where the block reads."""
    given, heads = f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.attn.hook_z"
    seen = []

    def changed(captured: Any, original: torch.Tensor) -> torch.Tensor:
        new = original.clone()
        new[:, LAST - back] += 1.0
        return new

    for replace in (lambda captured, original: original, changed):
        watch = {given: replace, heads: lambda captured, original: seen.append(original.clone()) or original}
        model.logits(token_ids, watch, capture=())
    return not torch.equal(seen[0][:, LAST], seen[1][:, LAST])


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_shorter_and_longer_than_the_context(name: str, make: Make, token_ids: torch.Tensor) -> None:
    settings, windowed, full = WINDOWS[name]
    short = make(name, sliding_window=WINDOW, **settings)
    assert [reads(short, windowed, token_ids, back) for back in (0, WINDOW - 1, WINDOW, LAST)] == [True, True, False, False]
    if full is not None:
        assert reads(short, full, token_ids, WINDOW)
        assert reads(short, full, token_ids, LAST)
    long = make(name, sliding_window=4 * CONTEXT, **settings)
    assert reads(long, windowed, token_ids, LAST)


@pytest.mark.parametrize("name", ["gemma3", "opt", "bloom", "falcon", "llama"])
def test_tied_embeddings(name: str, make: Make, token_ids: torch.Tensor) -> None:
    """The unembedding is the embedding, or, untied, is not; either way logits are the unembedding of the final norm."""
    for tied in (True, False):
        model = make(name, tie_word_embeddings=tied)
        end = model.unembedding()
        embedding = model._model.get_input_embeddings().weight  # type: ignore[attr-defined]
        assert (end.W_U.data_ptr() == embedding.data_ptr()) == tied
        final = model.activations(token_ids, ["ln_final.hook_out"])["ln_final.hook_out"]
        torch.testing.assert_close(model.logits(token_ids), final @ end.W_U.T, rtol=1e-5, atol=1e-5)


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": CONTEXT // 4},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {"short_factor": [1.0, 2.0, 3.0, 4.0], "long_factor": [4.0] * 4, "original_max_position_embeddings": 8},
}


def frequencies(rope_type: str, options: dict[str, Any], base: float, n: int) -> torch.Tensor:
    """Of a head of width 2 n, by hand, where the scaling is a factor of each frequency alone."""
    plain = base ** (-torch.arange(n, dtype=torch.float64) / n)
    if rope_type == "linear":
        return plain / options["factor"]
    if rope_type == "longrope":
        return plain / torch.tensor(options["long_factor"], dtype=torch.float64)
    turns = options["original_max_position_embeddings"] * plain / (2 * torch.pi)  # llama3
    high, low, factor = options["high_freq_factor"], options["low_freq_factor"], options["factor"]
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return smooth * plain + (1 - smooth) * plain / factor


@pytest.mark.parametrize(
    ("name", "rope_type"),
    [*((name, kind) for name in ("llama", "qwen3_moe") for kind in SCALINGS if kind != "longrope"), ("phi3", "longrope")],
)
def test_rotary_scalings(name: str, rope_type: str, make: Make, token_ids: torch.Tensor) -> None:
    """Scores of the first block, from queries and keys by hand; and the scaling is not that of another."""
    rope = {"rope_type": rope_type, "rope_theta": 100.0, **SCALINGS[rope_type]}
    long = {"original_max_position_embeddings": 8} if rope_type == "longrope" else {}
    model = make(name, rope_parameters=rope, **long)
    plain = make(name, rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    z = "blocks.0.attn.hook_z"
    assert not torch.equal(model.activations(token_ids, [z])[z], plain.activations(token_ids, [z])[z])
    if rope_type == "yarn":
        return  # its ramp between frequencies is transformers' own
    names = [f"blocks.0.attn.hook_{part}" for part in "qkvz"]
    q, k, v, wanted = (value.double() for value in model.activations(token_ids, names).values())
    q, k, v = (part.unflatten(-1, (-1, 8)).transpose(1, 2) for part in (q, k, v))
    if name == "qwen3_moe":
        own = model._blocks[0].self_attn  # type: ignore[attr-defined]
        q, k = (
            x * (x.square().mean(-1, keepdim=True) + 1e-3).rsqrt() * norm.weight
            for x, norm in ((q, own.q_norm), (k, own.k_norm))
        )
    angles = torch.arange(q.shape[2])[:, None] * frequencies(rope_type, SCALINGS[rope_type], 100.0, 4)
    factor = (
        1.0 if rope_type != "longrope" else (1 + torch.log(torch.tensor(CONTEXT / 8)) / torch.log(torch.tensor(8.0))).sqrt()
    )
    cos, sin = (torch.cat([part, part], -1) * factor for part in (angles.cos(), angles.sin()))

    def turned(x: torch.Tensor) -> torch.Tensor:
        return x * cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin

    q, k, v = turned(q), turned(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    causal = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    found = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~causal, -torch.inf).softmax(-1) @ v
    found = found.transpose(1, 2).flatten(-2)
    assert float((found - wanted).norm() / wanted.norm()) < 2e-6


def test_each_kind_of_layer_has_its_own_rotary_frequencies(make: Make, token_ids: torch.Tensor) -> None:
    """Gemma 3: those of one kind are changed, and layers of the other kind give the same for the same input."""
    options = CONFIGURATIONS["gemma3"][1]["rope_parameters"]
    changed = {**options, "full_attention": {"rope_type": "default", "rope_theta": 9.0}}
    one, other = make("gemma3"), make("gemma3", rope_parameters=changed)
    names = [f"blocks.{layer}.hook_attn_out" for layer in range(2)]
    a, b = one.activations(token_ids, names), other.activations(token_ids, names)
    assert torch.equal(a[names[0]], b[names[0]])
    assert not torch.equal(a[names[1]], b[names[1]])


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt"])
def test_a_vocabulary_larger_than_the_tokenizers(name: str, make: Make, token_ids: torch.Tensor) -> None:
    model = make(name, vocab_size=VOCAB + 20)
    assert model.vocab_size == VOCAB + 20 > len(model.tokenizer)
    assert model.logits(token_ids).shape == (*token_ids.shape, VOCAB + 20)
    assert model.unembedding().W_U.shape == (VOCAB + 20, D)
    beyond = token_ids.clone()
    beyond[0, 0] = VOCAB + 5  # a token that no text has
    assert model.activations(beyond, ["hook_embed"])["hook_embed"].isfinite().all()
    assert isinstance(model.token_text(VOCAB + 5), str)
