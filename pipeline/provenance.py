"""What code and which versions made a run. For tags of tracked runs only: data outputs hold none of it, since it would
change their hashes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "transformers", "transformer-lens", "datasets", "tokenizers", "numpy", "safetensors", "zarr", "dvc", "mlflow",
)  # fmt: skip
# Changed by every run, or shown as parameters: no sign that the code is another than the commit's.
NOT_SOURCE = ("params.yaml", "dvc.lock", "metrics")


def source_revision(directory: str | Path = ".") -> tuple[str | None, bool | None]:
    """The commit checked out in `directory` and whether tracked sources differ from it; (None, None) without git."""
    commit = _git(directory, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    excluded = [f":(exclude){name}" for name in NOT_SOURCE]
    changes = _git(directory, "status", "--porcelain", "--untracked-files=no", "--", ".", *excluded)
    return commit, None if changes is None else bool(changes)


def _git(directory: str | Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def committed_text(path: str) -> str | None:
    """A file of the working directory as the commit that is checked out has it; None without git, or where it has none."""
    return _git(".", "show", f"HEAD:./{path}")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """{package: version} of those that are installed, and python; nothing is imported."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def file_digest(path: str | Path) -> str | None:
    """sha256 of a file; None if there is none."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


def provenance_tags() -> dict[str, str]:
    """Tags of a run: commit, dirty, versions, digests of both locks, and the DVC experiment with the commit it starts from."""
    commit, dirty = source_revision()
    tags = {
        "mlflow.source.git.commit": commit,
        "git_dirty": None if dirty is None else str(dirty).lower(),
        "dvc_lock_sha256": file_digest("dvc.lock"),
        "requirements_lock_sha256": file_digest("requirements.lock"),
        "dvc_exp_name": os.environ.get("DVC_EXP_NAME"),
        "dvc_exp_baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
        **{f"version.{name}": found for name, found in versions().items()},
    }
    return {name: value for name, value in tags.items() if value}


def section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object in a dictionary's provenance, which anybody may have written; empty where there is none."""
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}
