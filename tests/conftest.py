"""Shared fixtures: a finished small project, run once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported: small tests are slower with several spinning threads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
for variable in ("DVC_ROOT", "DVC_EXP_NAME", "SCOPELINE_STORE", "MLFLOW_TRACKING_URI"):
    os.environ.pop(variable, None)
os.environ["COLUMNS"] = "80"  # what click breaks its help at; of a narrow terminal it would be the terminal's

# The same examples each time, however long they take: a busy machine is no fault, and a random one would not be seen again.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A small project in which every stage has run; tests take a copy before they change it."""
    from tests.project import make_project

    return make_project(tmp_path_factory.mktemp("finished") / "project").run_all()


@pytest.fixture
def project(finished_project, tmp_path: Path):  # type: ignore[no-untyped-def]
    """A copy of the finished project."""
    return finished_project.copy(tmp_path / "project")
