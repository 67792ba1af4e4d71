"""Several processes with rows of their own train as one does with all of them; what they have besides is in test_dealt.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.seeding import generator
from pipeline.training.dealt import dealt
from pipeline.training.source import TrainingBatch
from pipeline.training.step import Trainer
from tests.training.cases import dictionary, params, rows, weights
from tests.training.threads import Place, in_mesh

STEPS, BATCH = 12, 24


def batches(masked: bool) -> list[TrainingBatch]:
    x = rows(STEPS * BATCH).double().split(BATCH)
    masks = torch.rand(STEPS, BATCH, generator=generator(0, "tests", "mask")) > 0.3
    return [TrainingBatch(i, x[i], x[i], masks[i] if masked else None) for i in range(STEPS)]


def trained(
    fields: dict[str, Any], options: dict[str, Any], of: Callable[[TrainingBatch], TrainingBatch], masked: bool, **more: Any
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    made = dictionary(**fields).double()
    trainer = Trainer(made, params(**options), total_steps=STEPS, norms={"input": 2.0}, **more)
    observations = [trainer.step(of(batch), observe=True) for batch in batches(masked)]
    state = {name: tensor for name, tensor in trainer.state().items() if name.startswith(("dead", "tokens", "diver", "n_auxk"))}
    return weights(made) | state, [each.figures() for each in observations if each is not None]


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "topk, auxk": ({}, {"auxk_coefficient": 0.1, "k_aux": 4, "dead_threshold": 20, "clip_grad_norm": 0.5}),
    "relu, a loss that is not linear": ({"act_fn": "relu"}, {"sparsity_loss_type": "tanh-quad", "l1_coefficient": 0.1}),
    "jumprelu, a target": ({"act_fn": "jumprelu"}, {"target_l0": 4.0}),
    "relu, a steered coefficient": (
        {"act_fn": "relu"},
        {"sparsity_loss_type": "power", "l1_coefficient": 0.01, "target_l0": 4.0, "target_l0_mode": "coefficient"},
    ),
}


@pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "masked"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_steps_are_those_of_one_process(case: str, parts: int, masked: bool) -> None:
    fields, options = CASES[case]
    options = {"revive_dead_features": False, "gradient_accumulation_steps": parts, **options}
    wanted, figures = trained(fields, {**options, "gradient_accumulation_steps": 1}, lambda batch: batch, masked)

    def work(place: Place) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        rows = place.rows
        return trained(fields, options, lambda batch: dealt(batch, rows.rank, rows.size), masked, reductions=rows)

    found = in_mesh(3, 1, work)
    exact = 1e-6 if masked else 1e-10  # a part's share of the kept tokens is a float32
    for state, reported in found:
        assert state.keys() == wanted.keys()
        for name, tensor in wanted.items():
            if not (parts > 1 and name.startswith("divergence")):  # the guard looks at the first part's labels
                torch.testing.assert_close(
                    state[name], tensor, rtol=exact, atol=exact / 100, msg=lambda m, name=name: f"{name}: {m}"
                )
        for ours, theirs in zip(reported, figures, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-6)
