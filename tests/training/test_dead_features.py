"""Dead-feature counters on cases whose answer is visible."""

from __future__ import annotations

import torch

from pipeline.dictionaries.codes import Codes
from pipeline.training.dead_features import DeadFeatures


def codes(f: torch.Tensor) -> Codes:
    return Codes(f, f, f, torch.ones(f.shape[-1]))


def test_tokens_since_the_last_activation() -> None:
    dead = DeadFeatures((3,), dead_threshold=8)
    first = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    dead.update(codes(first).fired((3,)), 4)
    assert dead.tokens_since.tolist() == [0, 0, 4]
    assert dead.mask().tolist() == [False, False, False]
    dead.update(codes(torch.tensor([[1.0, 0.0, -1.0]])).fired((3,)), torch.tensor(5))
    assert dead.tokens_since.tolist() == [0, 5, 9]
    assert dead.mask().tolist() == [False, False, True]
    dead.update(torch.tensor([False, False, True]), 3)
    assert dead.mask().tolist() == [False, True, False]  # 8 tokens are enough; one activation revives


def test_layers_and_sequences() -> None:
    f = torch.zeros(4, 5, 2, 3)
    f[1, 2, 1, 0] = 1.0
    assert codes(f).fired((2, 3)).tolist() == [[False] * 3, [True, False, False]]
