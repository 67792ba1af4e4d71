"""A project that is moved or copied with its database: artifacts stay in the project, and a copy leaves the original alone."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from pathlib import Path

import pytest

from pipeline.params.sections.tracking import TrackingParams
from pipeline.tracking.opening import open_tracker
from tests.messages import says


def _run(params: TrackingParams, stage: str, content: str) -> str:
    Path("note.txt").write_text(content)
    with open_tracker(params, stage=stage, run_file="data/run.json") as tracker:
        tracker.log_artifact("note.txt", stage)
    assert tracker.run_id is not None
    return tracker.run_id


def _files(project: Path) -> dict[str, str]:
    """What a project holds, its database and artifacts included."""
    return {
        str(path.relative_to(project)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in project.rglob("*")
        if path.is_file()
    }


def _artifacts(project: Path, run_id: str) -> dict[str, str]:
    """{path: content} as MLflow finds them, without a file of another place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{project / 'mlflow.db'}")
        found = [file.path for folder in client.list_artifacts(run_id) for file in client.list_artifacts(run_id, folder.path)]
        assert client.get_run(run_id).info.artifact_uri == f"file://{project}/mlartifacts/{run_id}/artifacts"
    return {name: (project / "mlartifacts" / run_id / "artifacts" / name).read_text() for name in found}


@pytest.mark.parametrize("name", ["copy", "a_%b'c"])
@pytest.mark.parametrize("moved", [False, True])
def test_another_place(
    tracked: Path,
    params: TrackingParams,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    moved: bool,
) -> None:
    original = tracked / "original"
    original.mkdir()
    shutil.move(tracked / "mlflow.db", original)
    monkeypatch.setenv("DVC_ROOT", str(original))
    monkeypatch.chdir(original)
    first = _run(params, "train", "of the original")
    before = _files(original)
    copy = tracked / name
    (shutil.move if moved else shutil.copytree)(original, copy)
    capsys.readouterr()

    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()  # as in another process
    monkeypatch.setenv("DVC_ROOT", str(copy))
    monkeypatch.chdir(copy)
    assert _run(params, "evaluate", "of the copy") == first
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    says(line, f"file://{original}/mlartifacts", "mlflow.db")
    second = _run(params, "train", "again")
    assert capsys.readouterr().err == ""
    assert _files(original) == ({} if moved else before)
    assert original.exists() != moved
    assert {path.name for path in (copy / "mlartifacts").iterdir()} == {first, second}
    if "'" not in name and "%" not in name:  # elsewhere the URI has escapes
        assert _artifacts(copy, first) == {"train/note.txt": "of the original", "evaluate/note.txt": "of the copy"}
        assert _artifacts(copy, second) == {"train/note.txt": "again"}


def test_a_shared_database_keeps_its_places(
    tracked: Path, params: TrackingParams, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tracked / 'mlflow.db'}")
    ids = []
    for name in ("one", "two"):
        place = tracked / name
        place.mkdir()
        monkeypatch.setenv("DVC_ROOT", str(place))
        monkeypatch.chdir(place)
        ids.append(_run(params, "train", name))
    assert "warning" not in capsys.readouterr().err
    assert {path.name for path in (tracked / "one" / "mlartifacts").iterdir()} == set(ids)
