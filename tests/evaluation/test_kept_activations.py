"""Activations kept for the next dictionary: what the models give, run once as long as there is room."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pipeline.evaluation.kept_activations import KeptActivations, RememberingModels
from pipeline.evaluation.models import LanguageModels

FIRST, SECOND = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"


class Counted:
    """A model whose activations tell tokens and hook points apart, and how often it was run."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.runs: list[list[str]] = []

    def activations(self, tokens: Tensor, hooks: Iterable[str]) -> dict[str, Tensor]:
        self.runs.append([*hooks])
        return {hook: tokens[..., None].float() * (1 + len(self.runs)) + float(hook == SECOND) for hook in hooks}


def test_what_is_kept_is_not_run_again() -> None:
    model, kept = Counted(), KeptActivations()
    first, again = (RememberingModels(LanguageModels(model), kept) for _ in range(2))  # type: ignore[arg-type]
    tokens, others = torch.arange(12).reshape(2, 6), torch.arange(12).reshape(2, 6) + 1
    found = first.activations(tokens, [FIRST])
    assert torch.equal(again.activations(tokens, [FIRST])[FIRST], found[FIRST])
    both = again.activations(tokens, [SECOND, FIRST])  # what is missing alone is run
    assert [*both] == [SECOND, FIRST]
    assert torch.equal(both[FIRST], found[FIRST])
    assert model.runs == [[FIRST], [SECOND]]
    assert not torch.equal(again.activations(others, [FIRST])[FIRST], found[FIRST])
    again.activations(tokens[:1], [FIRST])
    assert len(model.runs) == 4


def test_only_what_there_is_room_for_is_kept() -> None:
    model, tokens = Counted(), torch.arange(12).reshape(2, 6)
    n_bytes = tokens.numel() * 4
    models = RememberingModels(LanguageModels(model), KeptActivations(n_bytes))  # type: ignore[arg-type]
    for _ in range(2):
        models.activations(tokens, [FIRST])
        models.activations(tokens + 1, [FIRST])
    assert len(model.runs) == 3
