"""A feature store whose contexts were dealt to processes has the bytes of one process, however it was stopped and gone on with."""

from __future__ import annotations

import copy
from contextlib import chdir
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.analysis import analyze as analysis_run
from pipeline.analysis import collection
from pipeline.analysis.active import ActiveFeatures
from pipeline.analysis.analyze import analyze, collect
from pipeline.analysis.coactivation import CoactivationSample
from pipeline.analysis.context_slots import ContextSlots
from pipeline.dealing import in_turns
from pipeline.dictionaries.build import build_dictionary
from pipeline.dictionaries.sharding import deal_
from pipeline.evaluation.models import LanguageModels
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.lm.loading import load_language_model
from pipeline.norms.hook_norm import as_hook_norm
from pipeline.params.loader import load_params
from pipeline.params.schema import AnalysisParams
from pipeline.seeding import generator
from tests.analysis.test_analyze import digests, inputs
from tests.analysis.test_context_slots import AFTER, BEFORE, F, K, N, activations, filled, offer
from tests.evaluation.test_several_dictionaries import CLT, READS
from tests.evaluation.tiny import D_MODEL, held_out, tiny_tokens, write_tiny_model
from tests.project import Project
from tests.threads import in_threads
from tests.training.test_model_loss import KINDS as LORSA
from tests.training.threads import ALONE, Place, in_mesh


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


@pytest.mark.parametrize("mesh", [(1, 2), (2, 2), (1, 4)])
def test_features_dealt_to_processes(project: Project, monkeypatch: pytest.MonkeyPatch, mesh: tuple[int, int]) -> None:
    """Processes with features of their own are stopped and go on; another mesh and one process too. The store is that of one."""
    monkeypatch.setattr(collection, "MOVED", 5)  # of 16 or 32 features
    monkeypatch.setattr(collection, "MOVED_PAIRS", 1000)
    whole, calls, widths = analysis_run.Collection.collect, [0], set()

    def failing(self: Any, batch: Any) -> Any:
        calls[0] += 1
        widths.add(self.raw.dictionary.n_features)
        if calls[0] == 12:
            raise OSError("disk")
        return whole(self, batch)

    monkeypatch.setattr(analysis_run.Collection, "collect", failing)

    def collected(place: Place) -> None:
        collect(params, inputs(project), place.rows, place.features, save_seconds=0.0)

    with chdir(project.path):
        params = load_params("params.yaml")
        with pytest.raises(OSError, match="disk"):
            in_mesh(*mesh, collected)
        assert widths == {64 // mesh[1]}
        assert list(Path("data/checkpoints").glob("analysis-*"))
        calls[0] = 100
        in_mesh(1, 2, collected)
        assert calls[0] < 100 + 2 * 16  # of 16 batches some were done
    analysed(project, 1)
    for file in ("features.parquet", "contexts.parquet"):
        ours, theirs = (pq.read_table(project.path / at / file).to_pylist() for at in ("features", "data/features"))
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours, theirs, strict=True):
            alike(one, other)


def alike(one: Any, other: Any) -> None:
    """Equal, numbers with a fraction up to the rounding of float32 sums: a product of half a matrix may be rounded otherwise."""
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(other, list):
        assert len(one) == len(other)
        for ours, theirs in zip(one, other, strict=True):
            alike(ours, theirs)
    elif isinstance(other, float):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    else:
        assert one == other


KINDS: dict[str, dict[str, Any]] = {
    "clt": {**CLT, "act_fn": "topk", "top_k": 3},
    "crosscoder": {"kind": "crosscoder", "hook_points_in": READS, "d_in": D_MODEL, "d_sae": 24, "act_fn": "jumprelu"},
    "lorsa": {**LORSA["lorsa"], "kind": "lorsa", "d_in": D_MODEL, "d_sae": 40, "act_fn": "batchtopk", "top_k": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_every_kind_collects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Features of layers, of several hook points, of heads that tell the tokens that they read: in float64, on 1 x 2 and 2 x 2."""
    monkeypatch.setattr(collection, "MOVED", 7)
    path, tokens = write_tiny_model(tmp_path / "model"), held_out(tiny_tokens(6), 2)
    made = build_dictionary({**KINDS[kind], "dtype": "float64"}, seed=1)
    norms = dict.fromkeys((*made.hooks_in, *made.hooks_out), as_hook_norm(3.0, D_MODEL))
    params = AnalysisParams(top_contexts=2, band_contexts=1, inactive_contexts=1, window_before=2, window_after=2)

    def collected(place: Place) -> dict[str, torch.Tensor] | None:
        dictionary = copy.deepcopy(made)
        deal_(dictionary, place.features)
        models = LanguageModels(load_language_model(path, device="cpu"))
        found = collection.Collection(models, RawDictionary(dictionary, norms), params, tokens.n_tokens)
        for turn in in_turns(tokens.n_batches, lambda number: found.collect(tokens.batch(number)), place.rows):
            for sums in turn:
                found.add_sums(sums)
        found.gather(place.rows)
        return found.state() if place.rows.rank == 0 else None

    wanted = collected(ALONE)
    assert wanted is not None
    assert int(wanted["counts.active"].count_nonzero()) > 10
    for mesh in ((1, 2), (2, 2)):
        state, *others = in_mesh(*mesh, collected)
        assert state is not None
        assert others == [None] * len(others)
        assert state.keys() == wanted.keys()
        for key in ("coactivation.token_hash", "coactivation.feature"):
            assert len(state[key])
        pairs = [
            sorted(zip(each["coactivation.token_hash"].tolist(), each["coactivation.feature"].tolist(), strict=True))
            for each in (state, wanted)
        ]
        assert pairs[0] == pairs[1]
        for key, tensor in wanted.items():
            if key.startswith(("top.", "drawn.", "inactive.")):
                continue
            if not key.startswith("coactivation."):
                torch.testing.assert_close(state[key], tensor, rtol=1e-6, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")
        for name in ("top", "drawn", "inactive"):
            ours, theirs = (ordered({k: t for k, t in each.items() if k.startswith(f"{name}.")}) for each in (state, wanted))
            for key, tensor in theirs.items():
                torch.testing.assert_close(ours[key], tensor, rtol=1e-6, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


def ordered(slots: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The slots of each feature, whose places follow the order of the batches, by their contexts."""
    (context,) = (tensor for key, tensor in slots.items() if key.endswith(".context"))
    order, row = context.argsort(dim=1, stable=True), torch.arange(len(context))[:, None]
    return {key: tensor[row, order] if tensor.shape[1] else tensor for key, tensor in slots.items()}


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
