"""The warning of a clone that lacks plots: whether DVC's cache has what dvc.lock names."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.uncached import made_here, runs_every_stage, uncached_plots
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
    assert "warning" not in project.run("inputs").stderr  # only an experiment fails
    monkeypatch.setenv("DVC_EXP_NAME", "brave-lynx")
    says(project.run("inputs").stderr, "warning:", "metrics/plots/norm", "`dvc exp run`", "`dvc repro STAGE`")
    monkeypatch.setattr("pipeline.uncached._commands", lambda: [["sh"], ["python", "/bin/dvc", "exp", "run"]])
    assert "warning" not in project.run("inputs").stderr  # all stages run, which draws the plots
    monkeypatch.setattr("pipeline.uncached._commands", lambda: [["python", "/bin/dvc", "exp", "run", "train"]])
    says(project.run("inputs").stderr, "warning:", "metrics/plots/norm")
    assert not made_here(Path("metrics/plots/norm"))
    cached = Path(".dvc/cache/files/md5") / MD5[:2] / MD5[2:]
    cached.parent.mkdir(parents=True)
    cached.write_text("[]")
    assert uncached_plots() == []
    assert "warning" not in project.run("inputs").stderr
    assert made_here(Path("metrics/plots/norm"))
    assert made_here(Path("metrics/plots/norm/index.html"))
    assert not made_here(Path("data/other"))
    assert not made_here(Path("/elsewhere"))


@pytest.mark.parametrize(
    ("command", "every"),
    [
        ("dvc exp run", True),
        ("python /env/bin/dvc exp run -n wide -S dictionary.top_k=48 -S trainer.lr=2e-4", True),
        ("python -m dvc experiments run --set-param seed=1", True),
        ("dvc exp run train", False),
        ("dvc exp run -S seed=1 -s norm train", False),
        ("dvc repro", False),
        ("dvc exp run --no-such-option", False),
    ],
)
def test_whether_every_stage_runs_is_told_by_the_command(command: str, every: bool) -> None:
    assert runs_every_stage([["bash"], command.split()]) == every


def test_a_dictionary_that_was_never_made_is_not_called_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.dictionaries.store import load_dictionary

    monkeypatch.chdir(tmp_path)
    place = tmp_path / "data" / "inference" / "main"
    for made, wanted, other in ((False, "never trained here", "lost outputs"), (True, "lost outputs", "never trained here")):
        monkeypatch.setattr("pipeline.dictionaries.formats.interface.made_here", lambda _, made=made: made)
        with pytest.raises(DataError) as caught:
            load_dictionary(place)
        says(str(caught.value), str(place), "no dictionary directory here", wanted, "`dvc repro")
        assert other not in str(caught.value)


def test_a_path_of_the_project_from_elsewhere_names_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.dictionaries.store import load_dictionary

    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (project / "data" / "inference" / "main").mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr("pipeline.dictionaries.formats.interface.CHECKOUT", project)
    with pytest.raises(DataError) as caught:
        load_dictionary("data/inference/main")
    says(str(caught.value), str(project), "PROJECT / 'data/inference/main'", "from pipeline.api import PROJECT")
    assert "never trained" not in str(caught.value)
