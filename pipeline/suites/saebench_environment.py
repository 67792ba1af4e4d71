"""The environment that SAEBench runs in: it needs numpy below 2 and datasets below 4, Scopeline needs newer ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pipeline.errors import DataError
from pipeline.files import json_object, parse_json

PLACE = ".venv-saebench"
# Releases that pip resolves together; torch and torchvision must be of one index (PyPI, or that of CPU builds).
REQUIREMENTS = (
    "sae-bench==0.6.0",
    "sae-lens==6.54.12",
    "sae-probes==0.4.2",
    "transformer-lens==3.9.0",
    "transformers==5.24.0",
    "torch==2.13.0",
    "torchvision==0.28.0",
    "datasets==3.6.0",
    "numpy==1.26.4",
    "scikit-learn==1.9.1",
    "safetensors==0.8.0",
)
_ASK = (
    "import importlib.metadata as m, json, sys\n"
    "def version(name):\n"
    "    try: return m.version(name)\n"
    "    except m.PackageNotFoundError: return None\n"
    "print(json.dumps({name: version(name) for name in sys.argv[1:]}))\n"
)
_SECONDS = 300


def environment_lines(place: str = PLACE) -> list[str]:
    """What to type, and the requirements."""
    return [
        "# SAEBench needs numpy < 2 and datasets < 4, so it has an environment of its own:",
        f"python -m venv {place}",
        f"python -m stages.saebench --requirements > {place}/requirements.txt",
        f"{place}/bin/pip install -r {place}/requirements.txt",
        f"python -m stages.saebench --python {place}/bin/python",
        "# Without a GPU, torch and torchvision from the index of CPU builds first:",
        f"{place}/bin/pip install torch==2.13.0 torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu",
        "# The requirements:",
        *REQUIREMENTS,
    ]


def child_environment(python: Path) -> dict[str, str]:
    """Environment variables for the other Python: ours, without what would have it find our packages."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    path = os.pathsep.join([str(python.absolute().parent), kept.get("PATH", "")])
    return {**kept, "PATH": path, "PYTHONUNBUFFERED": "1", "WANDB_MODE": "disabled"}


def environment_versions(python: Path) -> dict[str, str]:
    """{package: release} of a Python that has SAEBench.

    Raises:
        DataError: it is no Python, or has no sae-bench.
    """
    names = [requirement.partition("==")[0] for requirement in REQUIREMENTS]
    advice = "`python -m stages.saebench --environment` says how to make one"
    if not python.exists():
        raise DataError(f"{python}: no Python here; {advice}, and --python names another")
    try:
        done = subprocess.run(
            [str(python.absolute()), "-c", _ASK, *names],
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            env=child_environment(python),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"{python}: does not run as a Python ({error}); {advice}") from None
    if done.returncode:
        raise DataError(f"{python}: does not run as a Python (exit code {done.returncode}); {advice}")
    found = json_object(parse_json(done.stdout, f"{python}: its answer", advice), f"{python}: its answer", advice)
    if found.get("sae-bench") is None:
        own = " (it is Scopeline's own)" if python.absolute() == Path(sys.executable).absolute() else ""
        raise DataError(f"{python}: has no sae-bench{own}; {advice}")
    return {name: str(version) for name, version in found.items() if version is not None}
