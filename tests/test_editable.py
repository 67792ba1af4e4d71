"""What the README's first command installs: the package from any directory, and the stages from the root as before."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from tests.project import REPOSITORY

ANYWHERE = """
import pipeline, stages.preset
from pipeline import api
from pipeline.dashboard.folder import _ASSETS
from pipeline.params.presets import apply_preset, preset_names

print(pipeline.__file__)
print(api.PROJECT)
assert sorted(path.suffix for path in _ASSETS.iterdir())
assert "demo" in str(preset_names())
model = api.load_language_model("demo", device="cpu")
print(tuple(model.logits(model.to_tokens("Once upon a time")).shape))
"""


def commands() -> list[str]:
    """The first code block of the README's section, as .ci/run takes it."""
    section = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("## Two commands")[2]
    block = re.search(r"```bash\n(.*?)\n```", section, re.S)
    assert block is not None
    return block[1].split(" && ")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a copy of the checkout, the python into which the README's own command has installed it)."""
    root = tmp_path_factory.mktemp("installed")
    checkout, environment = root / "checkout", root / "environment"
    checkout.mkdir()
    for name in ("pipeline", "stages", "presets", "data/demo"):
        shutil.copytree(REPOSITORY / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "params.yaml"):
        shutil.copy(REPOSITORY / name, checkout / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = environment / "lib" / version / "site-packages" / "dependencies.pth"
    packages.write_text(sysconfig.get_path("purelib"), encoding="utf-8")  # what the lock installs
    (command,) = [command for command in commands() if command.endswith("-e .")]
    assert command.startswith("pip install ")
    options = ["--python", str(python), *command.split()[1:], "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", *options], cwd=checkout, check=True)
    return checkout, python


def run(python: Path, *arguments: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DVC_ROOT")}
    done = subprocess.run(
        [python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_script_anywhere_finds_package_presets_assets_and_the_embedded_model(
    installed: tuple[Path, Path], tmp_path: Path
) -> None:
    checkout, python = installed
    (tmp_path / "anywhere.py").write_text(ANYWHERE, encoding="utf-8")
    lines = run(python, "anywhere.py", cwd=tmp_path).splitlines()
    assert lines[0] == str(checkout / "pipeline" / "__init__.py")
    assert lines[1] == str(checkout)
    assert lines[2].startswith("(1, ")


def test_the_distribution_is_scopeline_and_nothing_was_fetched(installed: tuple[Path, Path], tmp_path: Path) -> None:
    """--no-index in the fixture leaves nothing to fetch from: the lock alone has what the build needs."""
    _, python = installed
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert run(python, "-c", "import importlib.metadata as m; print(m.version('scopeline'))", cwd=tmp_path) == f"{version}\n"
    lock = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert [line for line in lock if line.startswith("setuptools==")]  # --no-build-isolation builds with it
    assert not [line for line in lock if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!]+", line)]


def test_another_checkout_runs_its_own_stages(installed: tuple[Path, Path], tmp_path: Path) -> None:
    """`python -m stages.x` takes the code of the directory that it is run in, as DVC's temporary experiments need it."""
    _, python = installed
    for name in ("pipeline", "stages"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text('"""Another."""\n', encoding="utf-8")
    (tmp_path / "stages" / "own.py").write_text("import pipeline\nprint(pipeline.__file__)\n", encoding="utf-8")
    assert run(python, "-m", "stages.own", cwd=tmp_path) == f"{tmp_path / 'pipeline' / '__init__.py'}\n"
