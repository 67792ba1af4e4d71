"""A feature store whose contexts were dealt to processes has the bytes of one process, however it was stopped and gone on with."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.analysis import analyze as analysis_run
from pipeline.analysis import collection
from pipeline.analysis.active import ActiveFeatures
from pipeline.analysis.analyze import analyze, collect
from pipeline.analysis.coactivation import CoactivationSample
from pipeline.analysis.context_slots import ContextSlots
from pipeline.params.loader import load_params
from pipeline.seeding import generator
from tests.analysis.test_analyze import digests, inputs
from tests.analysis.test_context_slots import AFTER, BEFORE, F, K, N, activations, filled, offer
from tests.project import Project
from tests.threads import in_threads


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_slots_of_several_are_those_of_one(ties: bool, distinct: bool, seed: int) -> None:
    """Contexts dealt at random; the first one takes over twice, the second time from others that began anew."""
    f, numbers = activations(seed, ties), torch.arange(N) * 3
    wanted = filled(f, [], sources=True, distinct=distinct).ordered(slice(0, F))
    owner = torch.randint(0, 3, (N,), generator=generator(seed, "tests", "dealt"))
    first: ContextSlots | None = None
    for part in (range(0, 11), range(11, N)):
        several = [first] if first is not None else []
        several += [ContextSlots(F, K, BEFORE, AFTER, sources=True, distinct=distinct) for _ in range(3 - len(several))]
        for i in part:
            offer(several[int(owner[i])], f[i : i + 1], numbers[i : i + 1], sources=True)
        first = several[0]
        for other in several[1:]:
            for some in (slice(0, 4), slice(4, F)):
                first.take_over({name: tensor[some] for name, tensor in other.state().items()}, some)
    assert first is not None
    for name, tensor in first.ordered(slice(0, F)).items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("max_pairs", [60, 200, 10**6])
def test_samples_of_several_are_those_of_one(max_pairs: int) -> None:
    f = activations()
    whole, first, other = (CoactivationSample(F, 0.9, max_pairs) for _ in range(3))
    whole.update(ActiveFeatures.of(f), torch.arange(N))
    for i in range(N):
        (first if i % 3 else other).update(ActiveFeatures.of(f[i : i + 1]), torch.tensor([i]))
    for start in range(0, len(other), 7):
        first.take_over(*other.pairs(slice(start, start + 7)))
    assert first.limit == whole.limit
    assert set(zip(*(part.tolist() for part in first.pairs(slice(None))[1:]), strict=True)) == set(
        zip(*(part.tolist() for part in whole.pairs(slice(None))[1:]), strict=True)
    )
    assert len(first) == len(whole)


def analysed(project: Project, size: int, save_seconds: float = 60.0) -> list[str]:
    """The digests of the store that the first of so many processes writes."""
    with chdir(project.path):
        params = load_params("params.yaml")
        in_threads(size, lambda processes: collect(params, inputs(project), processes, save_seconds=save_seconds))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(analysis_run.Collection, "collect", lambda *_: pytest.fail("the pass is done again"))
            analyze(params, inputs(project), "features")
        assert not list(Path("data/checkpoints").glob("analysis-*"))
    return digests(project.path / "features")


@pytest.mark.parametrize("size", [2, 3])
def test_the_store_is_that_of_one_process(project: Project, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(collection, "MOVED", 20)  # of 64 features
    monkeypatch.setattr(collection, "MOVED_PAIRS", 1000)
    assert analysed(project, size, save_seconds=0.0 if size == 2 else 60.0) == digests(project.path / "data" / "features")


def test_stopped_another_number_of_processes_goes_on(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time another process fails, after states were saved; the last number goes on from them."""
    whole, calls = analysis_run.Collection.collect, [0]

    def failing(self: Any, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:
            raise OSError("disk")
        return whole(self, batch)

    monkeypatch.setattr(analysis_run.Collection, "collect", failing)
    params = load_params(project.path / "params.yaml")
    for size in (3, 2):
        calls[0] = 0
        with chdir(project.path), pytest.raises(OSError, match="disk"):
            in_threads(size, lambda processes: collect(params, inputs(project), processes, save_seconds=0.0))
    calls[0] = 100
    assert analysed(project, 3) == digests(project.path / "data" / "features")
    assert calls[0] < 100 + 16  # of 16 batches some were done


def test_one_that_is_asked_to_stop_stops_all(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.errors import Interrupted

    whole, stops = analysis_run.stop_on_signals, []

    class Asked:
        received = None

    def asked() -> Any:
        stops.append(Asked())
        return _Given(stops[-1])

    class _Given:
        def __init__(self, request: Any) -> None:
            self.request = request

        def __enter__(self) -> Any:
            return self.request

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(analysis_run, "stop_on_signals", asked)
    collected, calls = analysis_run.Collection.collect, [0]

    def counted(self: Any, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5:
            stops[1].received = "SIGTERM"
        return collected(self, batch)

    monkeypatch.setattr(analysis_run.Collection, "collect", counted)
    with chdir(project.path):
        params = load_params("params.yaml")

        def work(processes: Any) -> str:
            with pytest.raises(Interrupted) as caught:
                collect(params, inputs(project), processes)
            return str(caught.value)

        said = in_threads(3, work)
    assert len(set(said)) == 1
    assert "SIGTERM" in said[0]
    assert calls[0] <= 9
    monkeypatch.setattr(analysis_run, "stop_on_signals", whole)
    assert analysed(project, 1) == digests(project.path / "data" / "features")
