"""Several processes with rows of their own train as one does with all of them: here as threads that wait for one another."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.processes import Reductions
from pipeline.seeding import generator
from pipeline.training import revival
from pipeline.training.dealt import dealt
from pipeline.training.source import TrainingBatch
from pipeline.training.step import Trainer
from tests.dictionaries.test_contract import CASES as KINDS
from tests.training.cases import dictionary, params, rows, weights
from tests.training.test_every_kind import Source, make

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

    def gathered(self, values: Tensor) -> list[Tensor]:
        return self.meeting.all(self.rank, values.detach())


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


FAMILIES: dict[str, list[dict[str, Any]]] = {
    "budgeted": [{"auxk_coefficient": 0.1, "k_aux": 4}, {"revive_dead_features": True, "initial_k": 6}],
    "relu": [{"sparsity_loss_type": "tanh-quad", "l1_coefficient": 1e-3}],
    "jumprelu": [{"target_l0": 3.0, "revive_dead_features": True}, {"target_l0": 3.0, "topk_start_steps": 4}],
}
RUNS = [(kind, act_fn, options) for kind, act_fn in KINDS for options in FAMILIES.get(act_fn, FAMILIES["budgeted"])]


@pytest.mark.parametrize(
    ("kind", "act_fn", "options"), RUNS, ids=lambda value: value if isinstance(value, str) else next(iter(value))
)
def test_every_kind_and_gate_as_in_one_process(
    kind: str, act_fn: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revival, "EXPECTED", 1)  # so that features are silent for long enough in so short a run
    size = 3
    meeting = Meeting(size)
    settings = params(**{"revive_dead_features": False, "dead_threshold": 40, **options})

    def run(rank: int | None) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        made = make(kind, act_fn).double()
        with torch.no_grad():
            made.encoder_bias().view(-1)[:4].sub_(9.0)  # dead from the start
        norms = dict.fromkeys((*made.hooks_in, *made.hooks_out), 2.0)
        source = Source(made)
        reductions = {} if rank is None else {"reductions": Threads(meeting, rank)}
        trainer = Trainer(made, settings, total_steps=STEPS, norms=norms, **reductions)
        figures = []
        for batch in itertools.islice(source.batches(0), STEPS):
            batch = batch.to(torch.device("cpu"), torch.float64)
            observation = trainer.step(batch if rank is None else dealt(batch, rank, size), observe=True)
            assert observation is not None
            figures.append(observation.figures())
        return trainer.state(), figures

    wanted, reported = run(None)
    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(run, range(size)))
    for state, figures in found:
        assert state.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
        for ours, theirs in zip(figures, reported, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-6)
