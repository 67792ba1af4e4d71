"""Live activations: the rows of the store of the same parameters, in batches that each start is the same for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.activations import live as live_module
from pipeline.activations.interface import Activations
from pipeline.activations.joining import join_
from pipeline.activations.live import LiveActivations
from pipeline.activations.live_plan import plan_and_check
from pipeline.activations.order import BatchPlan
from pipeline.activations.schema import ROW_ARRAYS
from pipeline.contracts.sealing import sealed, unsealed
from pipeline.corpus.tokens import TokenStore
from pipeline.errors import DataError, NumericsError
from pipeline.files import read_json, write_json
from pipeline.hook_keys import MAIN
from pipeline.opening import open_activations
from tests.activations.cases import HOOK, OTHER, FakeModel, facts, make_store, make_tokens, settings
from tests.messages import between_ends, saying, says
from tests.project import Project, make_project


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return make_tokens(tmp_path_factory.mktemp("live") / "tokens.zarr", n_contexts=400)


def make_live(
    tokens: TokenStore,
    place: Path,
    models: Mapping[str, FakeModel] | None = None,
    hook_points: Sequence[str] = (HOOK,),
    **changes: object,
) -> LiveActivations:
    """Planned, and opened by the manifest with fake models in place of those that it names."""
    models = models or {MAIN: FakeModel()}
    manifest = place / "activations.json"
    about = {alias: facts(model.width, hook_points) for alias, model in models.items()}
    load = {alias: lambda hooks, model=model: model for alias, model in models.items()}
    plan_and_check(tokens, tokens.path, about, load, settings(**changes), manifest)
    opened = open_activations(manifest)
    assert isinstance(opened, LiveActivations)
    opened.models = {
        alias: dataclasses.replace(model, load=lambda hooks, fake=models[alias]: fake) for alias, model in opened.models.items()
    }
    return opened


def check_rows(one: Activations, other: Activations) -> None:
    assert (one.n_rows, one.chunk_rows, one.hook_points) == (other.n_rows, other.chunk_rows, other.hook_points)
    for name in (*one.hook_points, *ROW_ARRAYS):
        assert one.read(name, 0, one.n_rows).equal(other.read(name, 0, other.n_rows)), name


@pytest.mark.parametrize("storage_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("target", ["activations-1d", "activations-2d"])
def test_rows_are_those_of_the_store(
    tokens: TokenStore, tmp_path: Path, target: str, storage_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.activations import plan, schema

    for module in (plan, schema, live_module):
        monkeypatch.setattr(module, "BLOCK_ROWS", 1024)
    changes = {"target": target, "storage_dtype": storage_dtype}
    store = make_store(tmp_path, tokens, hook_points=(HOOK, OTHER), **changes)
    live = make_live(tokens, tmp_path, hook_points=(HOOK, OTHER), **changes)
    assert live.plan.n_blocks > 3
    check_rows(live, store)
    assert live.made_from() == store.made_from()
    inside = slice(1000, 1100) if target == "activations-1d" else slice(50, 90)
    both = live.read_together([OTHER, HOOK], inside.start, inside.stop)
    for hook, found in both.items():
        assert found.equal(store.read(hook, inside.start, inside.stop))
    for found, wanted in zip(live.read_rows_meta(5, 40), store.read_rows_meta(5, 40), strict=True):
        assert found.equal(wanted)
    rows = torch.randperm(live.n_rows)[:50]
    for found, wanted in zip(live.rows_meta(rows), store.rows_meta(rows), strict=True):
        assert found.equal(wanted)


def test_rows_of_two_models(tokens: TokenStore, tmp_path: Path) -> None:
    models = {MAIN: FakeModel(width=8), "big": FakeModel(width=8, shift=3.0)}
    main = make_store(tmp_path / "main", tokens, models[MAIN])
    other = make_store(tmp_path / "big", tokens, models["big"])
    live = make_live(tokens, tmp_path, models)
    check_rows(live, join_(main, {"big": other}))
    assert live.hook_points == [HOOK, f"big:{HOOK}"]
    assert set(live.made_from()) == {"activations", "tokens", "model", "model big"}
    assert set(live.settings()) == {str(live.path), f"{live.path}, model big"}
    batch = next(live.batches(64))
    assert batch.activations[f"big:{HOOK}"].sub(batch.activations[HOOK].float()).gt(1).all()


def collect(batches: Sequence[object]) -> list[tuple[int, Tensor, Tensor]]:
    return [(b.index, b.rows, b.activations[HOOK]) for b in batches]  # type: ignore[attr-defined]


@pytest.mark.parametrize("buffer_rows", [1024, None])
@pytest.mark.parametrize("prefetch", [False, True])
def test_batches_from_any_start_are_the_same(
    tokens: TokenStore, tmp_path: Path, buffer_rows: int | None, prefetch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.activations.plan.BLOCK_ROWS", 512)
    monkeypatch.setattr("pipeline.activations.order.MIN_CHUNKS", 2)
    live = make_live(tokens, tmp_path)
    every = list(live.batches(64, seed=3, epochs=3, buffer_rows=buffer_rows, prefetch=prefetch))
    per_epoch = live.batches_per_epoch(64)
    assert len(every) == 3 * per_epoch
    again = make_live(tokens, tmp_path)
    for start in (1, per_epoch - 1, per_epoch, 2 * per_epoch + 5):
        for found, wanted in zip(again.batches(64, seed=3, start=start, buffer_rows=buffer_rows), every[start:], strict=False):
            assert found.index == wanted.index
            assert found.rows.equal(wanted.rows)
            assert found.activations[HOOK].equal(wanted.activations[HOOK])
    for epoch in range(3):
        rows = torch.cat([b.rows for b in every[epoch * per_epoch : (epoch + 1) * per_epoch]])
        assert len(rows.unique()) == len(rows)
        assert not rows.equal(rows.sort()[0])
    assert not every[0].rows.equal(every[per_epoch].rows)
    for batch in every[:: per_epoch // 2]:
        whole = live.read(HOOK, 0, live.n_rows)
        assert batch.activations[HOOK].equal(whole[batch.rows])
        assert batch.tokens.equal(live.rows_meta(batch.rows).tokens)


def test_one_window_is_mixed_as_a_store_is_and_computed_once(tokens: TokenStore, tmp_path: Path) -> None:
    model = FakeModel()
    store = make_store(tmp_path, tokens, model)
    model.calls.clear()
    live = make_live(tokens, tmp_path, {MAIN: model})
    model.calls.clear()
    for found, wanted in zip(live.batches(64, epochs=3, seed=1), store.batches(64, epochs=3, seed=1), strict=True):
        assert found.rows.equal(wanted.rows)
        assert found.activations[HOOK].equal(wanted.activations[HOOK])
    assert len(model.calls) == live.plan.n_batches


def test_in_windows_each_model_batch_of_an_epoch_runs_once(
    tokens: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.activations.plan.BLOCK_ROWS", 512)
    monkeypatch.setattr("pipeline.activations.order.MIN_CHUNKS", 2)
    model = FakeModel()
    live = make_live(tokens, tmp_path, {MAIN: model})
    model.calls.clear()
    n_windows = 5
    list(live.batches(64, epochs=1, buffer_rows=1024, drop_last=False, prefetch=False))
    # A batch on the boundary of two windows is run for both, unless they follow each other.
    assert live.plan.n_batches <= len(model.calls) < live.plan.n_batches + n_windows


def test_two_dimensional_batches(tokens: TokenStore, tmp_path: Path) -> None:
    store = make_store(tmp_path, tokens, target="activations-2d")
    live = make_live(tokens, tmp_path, target="activations-2d")
    assert live.plan.block_rows % live.plan.model_batch_size == 0
    batch = next(live.batches(16, rows=(0, 100)))
    assert batch.mask.equal(store.read("mask", 0, store.n_rows)[batch.rows])
    assert batch.activations[HOOK].equal(store.read(HOOK, 0, store.n_rows)[batch.rows])
    assert int(batch.rows.max()) < 100


def test_runs_of_chunks_are_windows_in_an_order_of_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.activations.order.MIN_CHUNKS", 1)
    plan = BatchPlan(0, (0, 1000), 10, 8, 250, runs=True)
    first, second = plan.windows(0), plan.windows(1)
    assert sorted(w[0] for w in first) == sorted(w[0] for w in second) == [0, 25, 50, 75]
    assert [w[0] for w in first] != [w[0] for w in second]
    assert all((w[1:] - w[:-1] == 1).all() for w in first)


def test_refusals(tokens: TokenStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=saying("activations.total_tokens", "too little text")):
        make_live(tokens, tmp_path, total_tokens=10**6)
    with pytest.raises(DataError, match=saying("activations.context_size")):
        make_live(tokens, tmp_path, context_size=8)
    with pytest.raises(NumericsError, match=saying(HOOK, "token id 5", "non-finite")):
        make_live(tokens, tmp_path, {MAIN: FakeModel(bad_token=5)})
    live = make_live(tokens, tmp_path)
    with pytest.raises(DataError, match=saying(OTHER)):
        live.width(OTHER)
    with pytest.raises(DataError, match=saying("activations.batch_size", "activations.total_tokens")):
        live.batches(10**6)
    other = make_tokens(tmp_path / "other.zarr", n_contexts=401)
    live = make_live(tokens, tmp_path)
    live.tokens_path = other.path
    with pytest.raises(DataError, match=saying("other tokens", tokens.digest[:12])):
        live.read(HOOK, 0, 1)


def test_a_bad_batch_later_on_names_the_row(tokens: TokenStore, tmp_path: Path) -> None:
    model = FakeModel()
    live = make_live(tokens, tmp_path, {MAIN: model})
    model.bad_token = 7
    with pytest.raises(NumericsError, match=saying("token id 7", "row")):
        next(live.batches(64))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Project]:
    """The same small project on a store and live, through all stages."""
    place = tmp_path_factory.mktemp("projects")
    return make_project(place / "store").run_all("fold_norm"), make_project(place / "live").set(
        activations__source="live"
    ).run_all("fold_norm")


def test_a_project_ends_with_the_weights_of_its_store(pair: tuple[Project, Project]) -> None:
    store, live = pair
    for file in ("data/norms.json", "data/trained/main/weights.safetensors", "data/inference/main/weights.safetensors"):
        assert (store.path / file).read_bytes() == (live.path / file).read_bytes(), file
    assert not (live.path / "data" / "store").exists()
    assert json.loads((live.path / "metrics" / "generate.json").read_text())["bytes"] == 0
    figures = [json.loads((p.path / "metrics" / "generate.json").read_text()) for p in pair]
    assert {k: v for k, v in figures[0].items() if k != "bytes"} == {k: v for k, v in figures[1].items() if k != "bytes"}


def altered(project: Project, place: Path, **changes: object) -> Project:
    """A copy with another manifest."""
    copy = project.copy(place)
    manifest = copy.path / "data" / "activations.json"
    about, origin = unsealed(read_json(manifest, "manifest"), manifest, "manifest", next_action="")
    write_json(manifest, sealed(about | changes, origin))
    return copy


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_rows": 17}, ("17",)),
        ({"config": {}}, ("damaged",)),
        ({"hook_points": []}, ("damaged",)),
        ({"tokens": "nowhere.zarr"}, ("nowhere.zarr",)),
        ({"source": "store"}, ("damaged",)),
    ],
)
def test_an_altered_manifest_is_refused(
    pair: tuple[Project, Project], tmp_path: Path, changes: dict[str, object], said: tuple[str, ...]
) -> None:
    outcome = altered(pair[1], tmp_path / "copy", **changes).run("compute_norm")
    assert outcome.exit_code == 2
    assert all(part in outcome.stderr for part in said), outcome.stderr
    assert len(between_ends(outcome.stderr)) == 1


def test_another_model_under_the_name_is_refused(pair: tuple[Project, Project], tmp_path: Path) -> None:
    copy = pair[1].copy(tmp_path / "copy")
    config = copy.path / "model" / "config.json"
    about = json.loads(config.read_text())
    config.write_text(json.dumps(about | {"layer_norm_eps": 1e-3}))
    outcome = copy.run("compute_norm")
    assert outcome.exit_code == 2
    assert "another one" in outcome.stderr


def test_live_reads_no_store_and_a_store_is_not_live(pair: tuple[Project, Project], tmp_path: Path) -> None:
    store, live = (project.copy(tmp_path / name) for project, name in zip(pair, ("store", "live"), strict=True))
    outcome = live.set(activations__path="data/store/x").run("generate_activations")
    assert outcome.exit_code == 2
    says(outcome.stderr, "activations.path", "live")
    outcome = store.set(activations__source="live").run("train")
    assert outcome.exit_code == 2
    says(outcome.stderr, "activations.source", "generate`")
