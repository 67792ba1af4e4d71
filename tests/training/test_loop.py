"""The loop: reports, snapshots, resuming, and stopping."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.store import load_dictionary
from pipeline.errors import CheckpointError, Interrupted, NumericsError
from pipeline.interrupts import stop_on_signals
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.loop import TrainingRun, train
from pipeline.training.source import TensorSource, TrainingBatch
from pipeline.training.step import Trainer
from tests.training.cases import NORMS, dictionary, params, rows, same, weights

STEPS = 11


def run(made: Dictionary, directory: Path | None = None, source: TensorSource | None = None, **fields: object) -> TrainingRun:
    source = source or TensorSource(rows(100), batch_size=16, seed=0)
    settings = params(**fields)
    if directory is None:
        return train(made, source, params=settings, norms=NORMS, total_steps=STEPS)
    with Checkpoints(directory, {}).opened() as checkpoints:
        return train(made, source, params=settings, norms=NORMS, total_steps=STEPS, checkpoints=checkpoints)


def test_reports_at_log_steps_and_at_the_end() -> None:
    seen: list[int] = []
    source = TensorSource(rows(100), batch_size=16, seed=0)
    made = dictionary()
    ended = train(
        made,
        source,
        params=params(log_frequency=4),
        norms=NORMS,
        total_steps=STEPS,
        on_metrics=lambda step, figures: seen.append(step) if "data_wait_share" in figures else None,
    )
    assert seen == [row["step"] for row in ended.history.rows] == [0, 4, 8, 10]
    assert ended.history.rows[-1]["tokens"] == STEPS * 16
    assert "data_wait_share" not in ended.history.rows[-1]
    assert ended.last == ended.history.rows[-1]
    assert ended.history.rows[-1]["loss"] < ended.history.rows[0]["loss"]


@pytest.mark.parametrize(("schedule", "steps"), [("linear", (6, 11)), ("log", (3, 11))])
def test_snapshots_are_spaced_as_asked(tmp_path: Path, schedule: str, steps: tuple[int, ...]) -> None:
    run(dictionary(), tmp_path, n_checkpoints=2, checkpoint_schedule=schedule)
    assert sorted(p.name for p in tmp_path.glob("snapshot-*")) == [f"snapshot-{step:09d}" for step in steps]


def test_a_run_too_short_for_revival_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """64 d_sae / k = 512 tokens of silence are more than the 176 of the run; a larger k makes it possible."""
    for top_k, label, said in ((3, "train", True), (12, "train", False), (3, None, False)):
        source, made = TensorSource(rows(100), batch_size=16, seed=0), dictionary(top_k=top_k)
        settings = params(revive_dead_features=True, dead_threshold=0.0075, total_training_tokens=STEPS * 16)
        train(made, source, params=settings, norms=NORMS, total_steps=STEPS, label=label)
        line = (
            "train: trainer.revive_dead_features does nothing in this run of 176 tokens: a feature is revived after 512 without"
        )
        assert (line in capsys.readouterr().err) == said


def test_files_change_no_bit_and_snapshots_are_dictionaries(tmp_path: Path) -> None:
    plain, saved = dictionary(), dictionary()
    first = run(plain)
    run(saved, tmp_path, checkpoint_minutes=1e-9, n_checkpoints=2, log_frequency=4)
    assert same(weights(plain), weights(saved))
    assert [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()] == first.history.rows
    names = sorted(p.name for p in tmp_path.glob("s*"))
    assert names == ["snapshot-000000006", "snapshot-000000011", "step-000000009", "step-000000010"]
    assert same(weights(load_dictionary(tmp_path / "snapshot-000000011")), weights(saved))


@pytest.mark.parametrize("optimizer", ["adam", "sparseadam"])
def test_going_on_from_a_checkpoint_gives_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    def stopping(step: int) -> None:
        class Stop(TensorSource):
            def batches(self, start: int):  # type: ignore[no-untyped-def]
                for batch in super().batches(start):
                    if batch.index == step:
                        raise KeyboardInterrupt
                    yield batch

        with pytest.raises(KeyboardInterrupt):
            run(dictionary(), tmp_path, Stop(rows(100), batch_size=16, seed=0), checkpoint_minutes=1e-9, optimizer=optimizer)

    unbroken, broken = dictionary(), dictionary()
    ended = run(unbroken, optimizer=optimizer)
    stopping(3)
    stopping(7)
    (tmp_path / "step-000000007" / "state.safetensors").write_bytes(b"")
    again = run(broken, tmp_path, optimizer=optimizer)
    assert same(unbroken.state_dict(), broken.state_dict())
    assert same(ended.trainer.state(), again.trainer.state())


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    run(dictionary(), tmp_path, checkpoint_minutes=1e-9)
    with pytest.raises(CheckpointError, match=r"after step 10 does not fit.*remove the directory"):
        run(dictionary(d_sae=12), tmp_path)


@pytest.fixture
def usual_interrupts():
    """Ctrl-C as in a terminal, also where the tests run in the background, which starts them with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("waiting", [False, True])
def test_a_signal_saves_and_stops(usual_interrupts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: bool) -> None:
    """During a step, which ends; or while the next batch is waited for, which is not."""

    class Signal(TensorSource):
        def batches(self, start: int):  # type: ignore[no-untyped-def]
            for batch in super().batches(start):
                if batch.index == 6 and waiting:
                    signal.raise_signal(signal.SIGTERM)
                    pytest.fail("the batch was waited for")
                yield batch

    step = Trainer.step

    def signalled(self: Trainer, batch: TrainingBatch, **more: Any) -> Any:
        if batch.index == 5 and not waiting:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, **more)

    monkeypatch.setattr(Trainer, "step", signalled)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"SIGTERM after step 6 of 11") as caught:
        run(dictionary(), tmp_path, Signal(rows(100), batch_size=16, seed=0))
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) == before
    assert Checkpoints(tmp_path, {}).points() == [6]
    monkeypatch.undo()
    going_on, unbroken = dictionary(), dictionary()
    run(going_on, tmp_path)
    run(unbroken)
    assert same(weights(going_on), weights(unbroken))
    with stop_on_signals() as request:
        signal.raise_signal(signal.SIGINT)
        assert request
        with pytest.raises(KeyboardInterrupt):  # a second one acts as usual
            signal.raise_signal(signal.SIGINT)


def test_nothing_is_saved_of_a_bad_step(tmp_path: Path) -> None:
    x = rows(100)
    x[7, 3] = float("nan")
    with pytest.raises(NumericsError, match=r"not finite at step \d+ \(epoch 0, batch \d of 6, tokens"):
        run(dictionary(), tmp_path, TensorSource(x, batch_size=16, seed=0), checkpoint_minutes=1e-9)
    for step in Checkpoints(tmp_path, {}).points():
        point = Checkpoints(tmp_path, {})._read(f"step-{step:09d}")
        assert all(bool(torch.isfinite(t).all()) for t in point.tensors.values())
