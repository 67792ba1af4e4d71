from __future__ import annotations

from pathlib import Path

import pytest

from tests.project import REPOSITORY


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to run in, where the embedded model is at hand."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "demo").symlink_to(REPOSITORY / "data" / "demo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path
