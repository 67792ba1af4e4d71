"""A project of its own for each test, and a database that is made once."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import pytest

from pipeline.params.sections.tracking import TrackingParams

DVC = ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE", "MLFLOW_TRACKING_URI")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty project; nothing of the machine's own DVC or MLflow settings."""
    for name in DVC:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """A database with MLflow's tables, which takes seconds to make."""
    place = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        MlflowClient(tracking_uri=f"sqlite:///{place}").search_experiments()
    return place


@pytest.fixture
def tracked(project, empty_database) -> Path:
    """A project whose mlflow.db is there."""
    shutil.copyfile(empty_database, project / "mlflow.db")
    return project


@pytest.fixture
def client(tracked):
    """MLflow's own view of the project's database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        yield MlflowClient(tracking_uri=f"sqlite:///{tracked / 'mlflow.db'}")


@pytest.fixture
def params() -> TrackingParams:
    """Tracking's defaults."""
    return TrackingParams()
