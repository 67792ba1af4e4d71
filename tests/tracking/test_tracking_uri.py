"""Where the runs are kept: parameter, environment, default; what is wrong is said before anything starts."""

from __future__ import annotations

import pytest

from pipeline.errors import ParamsError
from pipeline.params.sections.tracking import TrackingParams
from pipeline.tracking.opening import open_tracker
from pipeline.tracking.store_uri import tracking_uri
from tests.messages import says


def test_default_is_a_database_in_the_project(project):
    assert tracking_uri(None) == f"sqlite:///{project}/mlflow.db"


def test_environment_wins_over_the_default_and_the_parameter_over_both(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert tracking_uri(None) == "http://localhost:5000"
    assert tracking_uri("sqlite:////elsewhere/a.db") == "sqlite:////elsewhere/a.db"


def test_relative_databases_are_of_the_project_not_of_the_working_directory(project, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("temporary-experiment"))
    assert tracking_uri("sqlite:///runs/a.db") == f"sqlite:///{project}/runs/a.db"
    assert tracking_uri("sqlite:///:memory:") == "sqlite:///:memory:"


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://u@h/d",
        "postgresql+psycopg2://u@h/d",
        "mysql+pymysql://u@h/d",
        "https://h",
        "databricks",
        "databricks://profile",
    ],
)
def test_known_kinds(project, uri):
    assert tracking_uri(uri) == uri


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("sqllite:///a.db", ("scheme", "sqlite")),
        ("ftp://host", ("scheme", "sqlite")),
        ("mlruns", ("directory", "sqlite:///mlflow.db")),
        ("file:///tmp/mlruns", ("directory", "sqlite:///mlflow.db")),
        ("sqlite:mlflow.db", ("no file", "sqlite:///mlflow.db")),
        ("sqlite:///", ("no file", "sqlite:///mlflow.db")),
    ],
)
def test_a_wrong_uri_is_an_error_at_the_start(project, monkeypatch, uri, parts):
    with pytest.raises(ParamsError, match=r"^tracking\.tracking_uri: ") as caught:
        open_tracker(TrackingParams(tracking_uri=uri), stage="train", run_file=project / "run.json")
    says(caught.value, f"'{uri}'", *parts)
    assert not (project / "run.json").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ParamsError, match=r"^MLFLOW_TRACKING_URI: "):
        tracking_uri(None)


def test_a_wrong_uri_does_not_matter_when_off(project):
    open_tracker(TrackingParams(enabled=False, tracking_uri="ftp://x"), stage="train", run_file=project / "run.json").close()
