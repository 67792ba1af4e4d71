"""Resume points: whole or passed over, the newest two, of this run only; snapshots and history."""

from __future__ import annotations

import json
import shutil
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

import pipeline.training.checkpoints as module
from pipeline.distributed.roll_call import RollCall, Unanswered
from pipeline.distributed.world import World
from pipeline.errors import CheckpointError, DataError
from pipeline.files import fingerprint
from pipeline.training.checkpoints import Checkpoints, check_fit, snapshot_steps
from pipeline.training.history import History

ABOUT = {"trainer": {"lr": 1e-3, "betas": (0.9, 0.99)}, "seed": 0}


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"W": torch.full((2, 3), value), "step": torch.tensor(value)}


def saved(path: Path, *steps: int) -> Checkpoints:
    made = Checkpoints(path, ABOUT)
    for step in steps:
        made.save(step, tensors(step), {"last": {"step": step}})
    made.wait()
    return made


def test_newest_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    made = saved(tmp_path, 5, 10, 100)
    assert made.points() == [100, 10]
    point, faults = made.latest()
    assert point is not None
    assert (point.step, point.extra, faults) == (100, {"last": {"step": 100}}, [])
    assert torch.equal(point.tensors["W"], torch.full((2, 3), 100.0))
    assert Checkpoints(tmp_path / "other", ABOUT).latest() == (None, [])


@pytest.mark.parametrize("damage", ["truncate", "alter", "remove weights", "remove record", "garble record", "version"])
def test_a_damaged_newest_point_falls_back(tmp_path: Path, damage: str) -> None:
    made = saved(tmp_path, 5, 10)
    state, record = (tmp_path / "step-000000010" / name for name in ("state.safetensors", "state.json"))
    content = state.read_bytes()
    if damage == "truncate":
        state.write_bytes(content[:-3])
    elif damage == "alter":
        state.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "remove weights":
        state.unlink()
    elif damage == "remove record":
        record.unlink()
    elif damage == "garble record":
        record.write_text("{")
    else:
        record.write_text(json.dumps({**json.loads(record.read_text()), "format_version": 9}))
    point, faults = made.latest()
    assert point is not None
    assert point.step == 5
    assert len(faults) == 1
    assert "step-000000010" in faults[0]


def test_all_damaged_is_an_error_with_the_next_action(tmp_path: Path) -> None:
    made = saved(tmp_path, 5, 10)
    for step in (5, 10):
        (tmp_path / f"step-{step:09d}" / "state.safetensors").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"every checkpoint of this run is damaged.*truncated, 0 of .*remove the directory"
    ):
        made.latest()


def test_other_parameters_are_named(tmp_path: Path) -> None:
    with saved(tmp_path, 5).opened():
        pass
    other = {**ABOUT, "trainer": {"lr": 2e-3, "betas": [0.9, 0.99]}}
    with (
        pytest.raises(CheckpointError, match=r"other parameters \(trainer\.lr 0\.001 there, 0\.002 here\)"),
        Checkpoints(tmp_path, other).opened(),
    ):
        pass
    assert fingerprint(other) != fingerprint(ABOUT)
    assert fingerprint(dict(reversed(ABOUT.items()))) == fingerprint(ABOUT)


def test_a_second_process_is_refused_and_leftovers_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".step-000000007.partial-abc"
    leftover.mkdir()
    (leftover / "state.safetensors").write_bytes(b"half")
    (tmp_path / ".run.json.abc.partial").write_bytes(b"half")
    with saved(tmp_path, 5).opened():
        assert sorted(p.name for p in tmp_path.iterdir()) == ["about.json", "lock", "step-000000005"]
        with pytest.raises(DataError, match="in use by another process"), Checkpoints(tmp_path, ABOUT).opened():
            pass


def test_the_state_is_copied_and_written_beside_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    write = module.write_tensors

    def slow(*args: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return write(*args)

    monkeypatch.setattr(module, "write_tensors", slow)
    made, state = Checkpoints(tmp_path, ABOUT), tensors(5.0)
    made.save(5, state, {})
    assert begun.wait(60)
    for tensor in state.values():  # the next step
        tensor.zero_()
    made.history.add({"step": 5})
    assert made.points() == []
    go_on.set()
    point, _ = made.latest()  # which waits for it
    assert point is not None
    assert (point.step, point.history_bytes) == (5, 0)
    assert torch.equal(point.tensors["W"], torch.full((2, 3), 5.0))


@pytest.mark.parametrize("fault", [DataError("no space left"), OSError(5, "Input/output error")])
def test_a_point_that_could_not_be_written_is_told_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    made = saved(tmp_path, 5)

    def full(*args: Any) -> Any:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_tensors", full)
        made.save(10, tensors(10), {})
        while not made.failed:
            time.sleep(0.01)
    with pytest.raises(type(fault), match=str(fault.args[-1])):
        made.save(15, tensors(15), {})
    assert not made.failed
    assert made.points() == [5]
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000005"]
    monkeypatch.setattr(module, "write_tensors", full)
    with pytest.raises(type(fault), match=str(fault.args[-1])), made.opened():  # or at the end, if there is none
        made.save(20, tensors(20), {})


def test_without_space_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = saved(tmp_path, 5)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    made.save(10, tensors(10), {})
    with pytest.raises(DataError, match="no space left on the device for a checkpoint"):
        made.wait()
    assert made.points() == [5]


def test_no_pickle(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    files = {path.name: path.read_bytes() for path in (tmp_path / "step-000000005").iterdir()}
    assert set(files) == {"state.safetensors", "state.json"}
    assert int.from_bytes(files["state.safetensors"][:8], "little") < len(files["state.safetensors"])
    assert files["state.safetensors"][8:9] == b"{"
    assert json.loads(files["state.json"])["files"]["state.safetensors"]["size"] == len(files["state.safetensors"])


def test_the_end_of_a_run_replaces_its_points(tmp_path: Path) -> None:
    made = saved(tmp_path, 5, 10)
    assert made.finished() is None
    made.finish(12, tensors(12), {"last": {"step": 11}})
    found = made.finished()
    assert found is not None
    assert (found.step, made.points()) == (12, [])
    (tmp_path / "finished" / "state.safetensors").write_bytes(b"")
    assert made.finished() is None


def test_history_goes_back_to_the_point(tmp_path: Path) -> None:
    made = Checkpoints(tmp_path, ABOUT)
    made.history.add({"step": 0, "loss": 2.0})
    made.save(1, tensors(1), {})
    made.history.add({"step": 1, "loss": 1.0})
    made.save(2, tensors(2), {})
    made.wait()
    (tmp_path / "step-000000002" / "state.json").unlink()
    point, _ = made.latest()
    assert point is not None
    made.history.resume(point.history_bytes)
    made.history.add({"step": 1, "loss": 1.5})
    assert made.history.file is not None
    assert [json.loads(line) for line in made.history.file.read_text().splitlines()] == [
        {"step": 0, "loss": 2.0},
        {"step": 1, "loss": 1.5},
    ]
    made.history.file.write_text("")
    with pytest.raises(CheckpointError, match=r"history\.jsonl: 0 bytes"):
        made.latest()
    in_memory = History()
    in_memory.add({"step": 0})
    assert in_memory.rows == [{"step": 0}]


def test_snapshot_steps() -> None:
    assert snapshot_steps(100, 4, "linear") == [25, 50, 75, 100]
    assert snapshot_steps(1000, 3, "log") == [10, 100, 1000]
    assert snapshot_steps(3, 10, "linear") == [1, 2, 3]


@pytest.mark.parametrize("schedule", ["linear", "log"])
@pytest.mark.parametrize("total", [1, 2, 3, 7, 40])
def test_more_snapshots_than_steps_are_every_step(schedule: str, total: int) -> None:
    every = {round(total ** (i / 5000) if schedule == "log" else total * i / 5000) for i in range(1, 5001)} - {0}
    assert every == set(range(1, total + 1))
    assert snapshot_steps(total, 5000, schedule) == snapshot_steps(total, 2**60, schedule) == sorted(every)
    assert snapshot_steps(100, 0, "linear") == []


def test_check_fit_names_the_tensor() -> None:
    with pytest.raises(CheckpointError, match=r"'W' has the shape \(3,\), wanted \(2,\)"):
        check_fit({"W": torch.zeros(2)}, {"W": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"'b' has the shape None"):
        check_fit({"b": torch.zeros(2)}, {})


class OfTwo(World):
    """Two processes, of which this one finds out that the other hangs."""

    def __init__(self) -> None:
        self.roll_call = RollCall(HashStore(), 0, 2, minutes=1.0)
        self.roll_call._who = lambda: "process 1 did not answer"

    def answered(self, began: float) -> AbstractContextManager[None]:
        return self.roll_call.answered(began)


@pytest.mark.parametrize(
    ("seconds", "kind", "said"),
    [(120.0, Unanswered, "process 1 did not answer within"), (1.0, DataError, "another process has ended")],
)
def test_a_process_that_is_gone_while_a_point_is_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, kind: type[DataError], said: str
) -> None:
    """The write was begun so long before it is asked for: whether it has timed out is told from there."""
    made = Checkpoints(tmp_path, ABOUT, OfTwo())

    def lost(*args: object) -> None:
        raise RuntimeError("Timed out waiting for recv")

    monkeypatch.setattr(module, "write_tensors", lost)
    made.save(3, tensors(3), {})
    monkeypatch.setattr(made, "_begun", time.monotonic() - seconds)
    with pytest.raises(DataError, match=said) as caught:
        made.wait()
    assert type(caught.value) is kind
    assert made.points() == []
