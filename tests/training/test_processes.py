"""Several processes with rows of their own train as one does with all of them: here as threads that wait for one another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.seeding import generator
from pipeline.training.processes import Reductions
from pipeline.training.source import TrainingBatch
from pipeline.training.step import Trainer
from tests.training.cases import dictionary, params, rows, weights

STEPS, BATCH = 12, 24


class Meeting:
    """Where threads put something down and see what all have put down."""

    def __init__(self, size: int) -> None:
        self.barrier, self.held = threading.Barrier(size, timeout=60), [None] * size

    def all(self, rank: int, value: Any) -> list[Any]:
        self.held[rank] = value
        self.barrier.wait()
        found = list(self.held)
        self.barrier.wait()
        return found


class Threads(Reductions):
    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.size = meeting, rank, len(meeting.held)

    def sum(self, values: Any) -> list[Any]:
        return [sum(each) for each in zip(*self.meeting.all(self.rank, list(values)), strict=True)]

    def any(self, flags: Tensor) -> Tensor:
        return torch.stack(self.meeting.all(self.rank, flags)).any(0)


def batches(masked: bool) -> list[TrainingBatch]:
    x = rows(STEPS * BATCH).double().split(BATCH)
    masks = torch.rand(STEPS, BATCH, generator=generator(0, "tests", "mask")) > 0.3
    return [TrainingBatch(i, x[i], x[i], masks[i] if masked else None) for i in range(STEPS)]


def dealt(batch: TrainingBatch, rank: int, size: int) -> TrainingBatch:
    x = batch.inputs[rank::size]
    return TrainingBatch(batch.index, x, x, None if batch.mask is None else batch.mask[rank::size])


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
    size = 3
    meeting = Meeting(size)

    def of_rank(rank: int) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        return trained(fields, options, lambda batch: dealt(batch, rank, size), masked, reductions=Threads(meeting, rank))

    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(of_rank, range(size)))
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
