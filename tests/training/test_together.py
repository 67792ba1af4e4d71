"""Several runs in one loop: what is read once, what each takes of it, and what is said of memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pipeline.activations.reader import ActivationStore
from pipeline.errors import ParamsError
from pipeline.norms.exclusion import NormLimits
from pipeline.training import held
from pipeline.training.held import check_memory, held_lines
from pipeline.training.loop import train_together
from pipeline.training.run import TrainingRun
from pipeline.training.shared_batches import joint_batches, joint_on_device
from pipeline.training.source import StoreSource, TensorSource
from pipeline.training.step import Trainer
from tests.messages import says
from tests.project import Project
from tests.training.cases import NORMS, dictionary, params, rows, same, weights

STEPS = 9
IN, OUT = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"


@pytest.fixture
def store(project: Project) -> ActivationStore:
    """Two hook points."""
    from pipeline.activations.reader import open_store

    project.set(activations__hook_points=[IN, OUT])
    assert project.run("generate_activations").exit_code == 0
    return open_store(project.store)


def source(store: ActivationStore, *hooks: str, **changes: Any) -> StoreSource:
    own = {"batch_size": 64, "rows": (0, 2048), "limits": NormLimits({}), "buffer_rows": 512, "seed": 1, **changes}
    return StoreSource(store, hooks[:1], hooks[-1:], **own)


def test_a_store_is_read_once_and_each_takes_what_it_would_have_read(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = store.read(OUT, 0, 2048).float().norm(dim=-1)
    short = NormLimits({OUT: float(lengths.median())})
    sources = [source(store, IN), source(store, OUT, limits=short), source(store, IN, OUT), source(store, IN)]
    other = source(store, IN, seed=2)
    starts = [0, 2, 0, 3, 1]
    wanted = [list(zip(range(5), own.batches(0), strict=False)) for own in (*sources, other)]
    asked: list[list[str]] = []
    batches = ActivationStore.batches

    def counted(store: ActivationStore, *args: Any, **kwargs: Any) -> Iterator[Any]:
        asked.append(sorted(kwargs["hook_points"]))
        return batches(store, *args, **kwargs)

    monkeypatch.setattr(ActivationStore, "batches", counted)
    for step, joint in zip(range(5), joint_batches([*sources, other], starts), strict=False):
        for place, batch in enumerate(joint):
            if step < starts[place]:
                assert batch is None
                continue
            alone = wanted[place][step][1]
            assert batch is not None
            assert batch.index == alone.index == step
            assert torch.equal(batch.inputs, alone.inputs)
            assert torch.equal(batch.labels, alone.labels)
        assert step < 3 or joint[0] is joint[3]  # what runs share is one
    assert asked == [[IN, OUT], [IN]]
    assert len(wanted[1][0][1].inputs) < 64


def test_what_is_shared_is_moved_once_in_each_dtype(store: ActivationStore) -> None:
    joint = joint_batches([source(store, IN), source(store, IN), source(store, IN)], [0, 0, 0])
    dtypes = [torch.float64, torch.float32, torch.float64]
    one, two, three = next(joint_on_device(joint, torch.device("cpu"), dtypes))
    assert one is three
    assert two is not None
    assert one is not None
    assert (one.inputs.dtype, two.inputs.dtype) == (torch.float64, torch.float32)
    assert one.labels is one.inputs


def runs(**widths: int) -> list[TrainingRun]:
    """Runs on tensors, of members with these numbers of features."""
    return [
        TrainingRun(
            dictionary(d_sae=width),
            TensorSource(rows(100), batch_size=16, seed=0),
            params=params(),
            norms=NORMS,
            total_steps=STEPS,
            name=name,
        )
        for name, width in widths.items()
    ]


def test_runs_on_tensors_end_as_each_alone() -> None:
    several = runs(a=24, b=40)
    assert train_together(several) == {}
    for run, (alone,) in zip(several, (runs(a=24), runs(b=40)), strict=True):
        assert train_together([alone]) == {}
        assert alone.ended
        assert same(weights(alone.dictionary), weights(run.dictionary))
        assert alone.history.rows == run.history.rows


def test_memory_that_runs_out_names_the_member(monkeypatch: pytest.MonkeyPatch) -> None:
    several, step = runs(a=24, b=40), Trainer.step

    def full(trainer: Trainer, batch: Any, observe: bool = False, asks: Any = None) -> Any:
        if trainer.dictionary.config.d_sae == 40 and trainer.step_number == 3:
            raise torch.OutOfMemoryError("out of memory")
        return step(trainer, batch, observe, asks)

    monkeypatch.setattr(Trainer, "step", full)
    with pytest.raises(ParamsError) as error:
        train_together(several)
    says(error.value, "sweep.b: trainer.gradient_accumulation_steps: 1", "out of memory at step 3")


def test_what_all_members_take_is_refused_together(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [(run.dictionary, run.source, run.params, run.name) for run in runs(a=24, b=40)]
    sizes = [sum(p.nbytes for p in made.parameters()) for made, *_ in members]
    assert held_lines(members)[1].startswith(f"b: {4 * sizes[1]:,} bytes")
    assert f"together {4 * sum(sizes):,} bytes" in held_lines(members)[-1]
    need = held.needs(*members[1])[-1].n_bytes + 3 * sum(sizes)
    monkeypatch.setattr("pipeline.memory.available_memory", lambda device: need)
    check_memory(members)
    monkeypatch.setattr("pipeline.memory.available_memory", lambda device: need - 1)
    check_memory(members[:1])
    with pytest.raises(ParamsError) as error:
        check_memory(members)
    says(error.value, f"{need:,} bytes", "gradients and moments of the weights of b")
