"""The warning of a clone that lacks plots: whether DVC's cache has what dvc.lock names."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.uncached import uncached_plots
from tests.messages import says
from tests.project import Project

MD5 = "43869de54202f7c1443e43ea402f5ae6.dir"
STAGES = """
stages:
  draw:
    cmd: none
    outs:
      - metrics/plots/norm
      - data/other
"""
LOCK = f"""
schema: '2.0'
stages:
  draw:
    cmd: none
    outs:
    - {{path: metrics/plots/norm, hash: md5, md5: {MD5}, size: 2, nfiles: 1}}
    - {{path: data/other, hash: md5, md5: {MD5.replace("4", "5")}, size: 2, nfiles: 1}}
"""


def test_plots_that_a_clone_lacks(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.repo import Repo

    monkeypatch.chdir(project.path)
    assert uncached_plots() == []  # no DVC repository
    Repo.init(no_scm=True).close()
    Path("dvc.yaml").write_text(STAGES)
    assert uncached_plots() == []  # never run
    Path("dvc.lock").write_text(LOCK)
    assert uncached_plots() == ["metrics/plots/norm"]
    assert project.run("inputs").stderr == ""  # only an experiment fails
    monkeypatch.setenv("DVC_EXP_NAME", "brave-lynx")
    says(project.run("inputs").stderr, "warning:", "metrics/plots/norm", "`dvc exp run`", "`dvc repro STAGE`")
    cached = Path(".dvc/cache/files/md5") / MD5[:2] / MD5[2:]
    cached.parent.mkdir(parents=True)
    cached.write_text("[]")
    assert uncached_plots() == []
    assert project.run("inputs").stderr == ""
