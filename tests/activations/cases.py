"""Small token stores and models for tests of the activation store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.activations.fingerprint import GenerationSettings
from pipeline.activations.generation import ModelFacts, generate_store
from pipeline.activations.reader import ActivationStore, open_store
from pipeline.corpus.packing import PackedSplit
from pipeline.corpus.tokens import TokenStore, open_tokens
from pipeline.corpus.tokens_writer import write_tokens

HOOK, OTHER = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
VOCABULARY = 40


def packed(n_contexts: int, context_size: int, seed: int = 0) -> PackedSplit:
    """Random tokens, about one in ten of them id 0."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCABULARY, (n_contexts, context_size), dtype=np.int32)
    tokens[rng.random(tokens.shape) < 0.1] = 0
    zeros = np.zeros_like(tokens)
    return PackedSplit(tokens, zeros, zeros, zeros)


def make_tokens(path: Path, n_contexts: int = 400, context_size: int = 16) -> TokenStore:
    """A token store that ignores id 0."""
    write_tokens(path, train=packed(n_contexts, context_size), eval=packed(4, context_size, 1), ignore_token_ids=(0,))
    return open_tokens(path)


@dataclass
class FakeModel:
    """Activations are a known function of token, position and hook point: [b, T, width]."""

    width: int = 8
    bad_token: int | None = None
    bad_value: float = float("nan")
    calls: list[tuple[str, ...]] = field(default_factory=list)
    stop_after: int | None = None
    shift: float = 0.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def value(self, tokens: Tensor, positions: Tensor, hook_point: str) -> Tensor:
        """float32 [..., width] of tokens and positions [...]."""
        table = torch.arange(VOCABULARY * self.width, dtype=torch.float32).view(VOCABULARY, self.width) / 7.0
        x = table[tokens.long()] + positions.unsqueeze(-1).float() / 16.0 + (100.0 if hook_point == OTHER else 0.0) + self.shift
        if self.bad_token is not None:
            x[tokens == self.bad_token] = self.bad_value
        return x

    def activations(self, token_ids: Tensor, hook_points: Sequence[str]) -> dict[str, Tensor]:
        if self.stop_after is not None and len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(tuple(hook_points))
        positions = torch.arange(token_ids.shape[1]).expand_as(token_ids)
        return {name: self.value(token_ids, positions, name) for name in hook_points}

    def first_not_finite(self, token_ids: Tensor) -> str:
        return f"first at a layer, of {len(token_ids)} context of {token_ids.shape[1]} tokens"


def facts(width: int = 8, hook_points: Sequence[str] = (HOOK,), digest: str | None = None) -> ModelFacts:
    """What generation is told of a FakeModel."""
    return ModelFacts("fake", None, digest or f"model {width}", width, dict.fromkeys(hook_points, width))


def settings(**changes: object) -> GenerationSettings:
    """Settings for `make_tokens`'s default store."""
    base = {"context_size": 16, "model_batch_size": 8, "total_tokens": 5000}
    return GenerationSettings(**{**base, **changes})  # type: ignore[arg-type]


def make_store(
    place: Path,
    tokens: TokenStore,
    model: FakeModel | None = None,
    hook_points: Sequence[str] = (HOOK,),
    **changes: object,
) -> ActivationStore:
    """Generate under `place` and open."""
    model = model or FakeModel()
    path = generate_store(tokens, facts(model.width, hook_points), lambda hook_points: model, settings(**changes), place)
    return open_store(path, list(hook_points))


def contents(path: Path) -> dict[str, bytes]:
    """{relative path: bytes} of all files under a directory."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
