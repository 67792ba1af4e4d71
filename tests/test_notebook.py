"""The example of docs/notebook.md, run from another directory on a small finished project."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline import api
from tests.project import REPOSITORY, Project


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "notebook.md").read_text(encoding="utf-8"), re.S)


def test_the_example_runs(finished_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "PROJECT", finished_project.path)
    names: dict[str, Any] = {}
    assert len(blocks()) == 11
    for block in blocks():
        exec(block.replace('"demo"', repr(str(finished_project.path / "model"))), names)
    run, attribution = names["run"], names["attribution"]
    assert run.loss.mean().item() == pytest.approx(float(names["model"].loss(names["text"]).mean()), rel=1e-6)
    assert names["gradient"].shape == run.features.shape
    assert float(names["without"].loss.mean()) != run.loss.mean().item()
    assert abs(attribution.gap) < 0.02 * abs(attribution.metric - attribution.baseline_metric) + 1e-4
    assert names["found"].features[0].label == names["labels"][names["feature"]]
