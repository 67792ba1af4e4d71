"""A store that several processes generate has the bytes of one process, whatever is stored and wherever they were killed."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.activations.fingerprint import GenerationSettings
from pipeline.activations.generation import generate_store, in_runs
from pipeline.activations.reader import open_store
from pipeline.corpus.tokens import TokenStore
from pipeline.errors import DataError, NumericsError
from pipeline.files import locked
from tests.activations.cases import HOOK, OTHER, FakeModel, contents, facts, make_store, settings
from tests.threads import in_threads


def generated(
    root: Path, tokens: TokenStore, size: int, models: Sequence[FakeModel] | None = None, **changes: Any
) -> list[FakeModel]:
    """The models of so many processes, each with its calls, after they have made a store of two hook points."""
    models = models or [FakeModel() for _ in range(size)]
    stated: GenerationSettings = settings(**changes)

    def work(processes: Any) -> None:
        generate_store(tokens, facts(8, (HOOK, OTHER)), lambda hooks: models[processes.rank], stated, root, processes)

    in_threads(size, work)
    return list(models)


def files(root: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(root).items() if not name.endswith(".lock")}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
@pytest.mark.parametrize("target", ["activations-1d", "activations-2d"])
def test_the_bytes_are_those_of_one_process(tokens: TokenStore, place: Path, tmp_path: Path, target: str, dtype: str) -> None:
    generated(place, tokens, 1, target=target, storage_dtype=dtype)
    wanted = files(place)
    assert len(wanted) > 20
    for size in (2, 3, 9):
        models = generated(tmp_path / str(size), tokens, size, target=target, storage_dtype=dtype)
        assert files(tmp_path / str(size)) == wanted
        assert sum(bool(model.calls) for model in models) == min(size, 5 if target == "activations-1d" else size)


def test_neighbouring_blocks_are_of_one_process(tokens: TokenStore, place: Path, tmp_path: Path) -> None:
    """So that a model batch on their boundary is run once."""
    assert in_runs([3, 4, 5, 6, 9], 2) == [3, 6, 4, 9, 5]
    assert in_runs([3, 4], 3) == [3, 4]
    (alone,) = generated(place, tokens, 1)
    two = generated(tmp_path / "two", tokens, 2)
    assert len(alone.calls) <= sum(len(model.calls) for model in two) <= len(alone.calls) + 1


@pytest.mark.parametrize(("dtype", "target"), [("bfloat16", "activations-1d"), ("int8", "activations-2d")])
def test_stopped_anywhere_another_number_of_processes_goes_on(
    tokens: TokenStore, place: Path, tmp_path: Path, dtype: str, target: str
) -> None:
    generated(place, tokens, 1, storage_dtype=dtype, target=target)
    wanted, root = files(place), tmp_path / "stopped"
    sizes = itertools.cycle([3, 2, 1])
    for stop in (0, 5, 3, 2):  # batches that one of the processes comes to
        size = next(sizes)
        models = [FakeModel() for _ in range(size)]
        models[-1].stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            generated(root, tokens, size, models, storage_dtype=dtype, target=target)
    assert len(files(root)) > 5
    generated(root, tokens, next(sizes), storage_dtype=dtype, target=target)
    assert files(root) == wanted
    damaged = next(path for path in root.rglob("c.*") if path.parent.name == HOOK)
    os.unlink(damaged)
    generated(root, tokens, 3, storage_dtype=dtype, target=target)
    assert files(root) == wanted


def test_a_chunk_that_was_not_told_is_written_again(tokens: TokenStore, place: Path, tmp_path: Path) -> None:
    """Whole, of another process, and with no line in the record."""
    generated(place, tokens, 1)
    wanted = files(place)
    shutil.copytree(place, tmp_path / "killed")
    (record,) = (tmp_path / "killed").glob(f"*/{HOOK}/digests")
    record.write_text("".join(record.read_text().splitlines(keepends=True)[:3]))
    models = generated(tmp_path / "killed", tokens, 2)
    assert files(tmp_path / "killed") == wanted
    assert all(set(model.calls) == {(HOOK,)} for model in models)


def test_a_value_that_is_not_finite_is_told_by_all_as_by_one(tokens: TokenStore, place: Path, tmp_path: Path) -> None:
    said = []
    for size in (1, 3):
        with pytest.raises(NumericsError) as caught:
            generated(tmp_path / str(size), tokens, size, [FakeModel(bad_token=7) for _ in range(size)])
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_store_in_use_is_told_in_all(tokens: TokenStore, place: Path) -> None:
    generated(place, tokens, 1)
    (path,) = (path for path in place.iterdir() if path.is_dir())

    def work(processes: Any) -> None:
        with pytest.raises(DataError, match="in use by another process"):
            generate_store(tokens, facts(8, (HOOK, OTHER)), lambda hooks: FakeModel(), settings(), place, processes)

    with locked(place / f"{path.name}.lock", "this test"):
        in_threads(2, work)


def test_a_whole_store_is_verified_where_it_cannot_be_written(
    tokens: TokenStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To one of the processes it cannot."""
    store = make_store(place, tokens, hook_points=(HOOK, OTHER))
    answers = iter(["no", None, "no", None])
    monkeypatch.setattr("pipeline.activations.generation.unwritable", lambda path: next(answers))

    def never(hooks: Sequence[str]) -> FakeModel:
        raise AssertionError("the model was loaded")

    def work(processes: Any) -> Path:
        return generate_store(tokens, facts(8, (HOOK, OTHER)), never, settings(), place, processes)

    assert in_threads(2, work) == [store.path] * 2
    os.unlink(next((store.path / HOOK).glob("c.*")))
    with pytest.raises(DataError, match="incomplete or damaged"):
        in_threads(2, work)
    assert open_store(store.path, [OTHER]).hook_points == [OTHER]
