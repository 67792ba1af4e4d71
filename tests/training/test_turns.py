"""Steps of several runs at the same time: their order, what a failure stops, and what counts as waiting."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

import pytest

from pipeline.errors import NumericsError
from pipeline.training.run import Timing, TrainingRun
from pipeline.training.turns import StepsAtOnce, StepsInTurn
from tests.messages import says


class Steps:
    """Stands for a run: its steps are kept in a list of all; each waits for the event of its number, if there is one."""

    def __init__(self, name: str, taken: list[tuple[str, int]], gates: dict[int, threading.Event], bad: int = -1) -> None:
        self.name, self.taken, self.gates, self.bad = name, taken, gates, bad

    def step(self, batch: int) -> None:
        if batch in self.gates:
            assert self.gates[batch].wait(10)
        if batch == self.bad:
            raise NumericsError(f"{self.name} at {batch}")
        self.taken.append((self.name, batch))


def begin(turns: Any, run: Steps, batch: int) -> Any:
    return turns.begin(cast(TrainingRun, run), cast(Any, batch))


def test_one_goes_on_while_another_is_at_its_step_and_none_is_ahead_of_itself() -> None:
    taken: list[tuple[str, int]] = []
    gate = threading.Event()
    slow, fast = Steps("slow", taken, {0: gate}), Steps("fast", taken, {})
    with StepsAtOnce(2) as turns:
        ends = [begin(turns, run, s) for s in range(2) for run in (fast, slow)]
        ends[0]()
        ends[2]()  # step 1 of fast: slow is still at step 0
        assert taken == [("fast", 0), ("fast", 1)]
        gate.set()
        ends[3]()
    assert taken == [("fast", 0), ("fast", 1), ("slow", 0), ("slow", 1)]


def test_a_run_that_has_failed_takes_no_further_step() -> None:
    taken: list[tuple[str, int]] = []
    bad, good = Steps("bad", taken, {}, bad=1), Steps("good", taken, {})
    with StepsAtOnce(2) as turns:
        ends = {(run.name, s): begin(turns, run, s) for s in range(3) for run in (bad, good)}
        for s in (1, 2):
            with pytest.raises(NumericsError, match="bad at 1"):
                ends["bad", s]()
        ends["good", 2]()
    assert sorted(taken) == [("bad", 0), ("good", 0), ("good", 1), ("good", 2)]


def test_time_in_which_a_step_is_taken_is_no_waiting() -> None:
    gate = threading.Event()
    run = Steps("one", [], {1: gate})
    asked = time.perf_counter()
    with StepsAtOnce(2) as turns:
        begin(turns, run, 0)()
        begin(turns, run, 1)
        assert turns.idle_since(asked) == 0.0
        gate.set()
        begin(turns, run, 2)()
        ended = time.perf_counter()
        time.sleep(0.05)
        idle = turns.idle_since(asked)
    assert time.perf_counter() - ended + 0.01 > idle > 0.049
    time.sleep(0.02)
    assert StepsInTurn().idle_since(asked) > time.perf_counter() - asked - 0.01


@pytest.mark.parametrize(
    ("wait", "words"),
    [
        (0.4, ("waited 4% of the time", "96%", "the language model keeps up")),
        (1.0, ("waited 10% of the time", "90%", "both count")),
        (4.1, ("waited 41% of the time", "59%", "both count")),
        (6.6, ("waited 66% of the time", "34%", "both count")),
        (6.7, ("waited 67% of the time", "33%", "the language model is the slower one", "stored")),
        (10.0, ("waited 100% of the time", "0%", "the language model is the slower one")),
    ],
)
def test_what_a_run_on_live_activations_waited_for_is_said_in_shares(wait: float, words: tuple[str, ...]) -> None:
    says(Timing(wait=wait, total=10.0).limit(), *words)
