"""Every link of README.md, the other pages and the notebooks leads somewhere, and every stage and section to a page.

The site's build looks at them too (`sphinx-build -W`, .ci/run): at what this does not know, as references of docstrings.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.params.schema import Params
from tests.links import anchors, broken, links, text_of
from tests.project import REPOSITORY

PAGES = sorted(
    file
    for pattern in ("*.md", "docs/**/*.md", "docs/tutorials/*.ipynb", "benchmarks/**/*.md", "presets/**/*.md")
    for file in REPOSITORY.glob(pattern)
    if "_build" not in file.parts
)
STAGES = REPOSITORY / "docs" / "stages.md"


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_links_lead_somewhere(file: Path) -> None:
    assert broken(file, REPOSITORY) == []


def test_the_readme_has_many() -> None:
    assert len([*links(text_of(REPOSITORY / "README.md"))]) > 30


def test_what_is_broken_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Two `code` words\n## Again\n## Again\n```\n# no heading\n```\n")
    (tmp_path / "picture.png").write_bytes(b"")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md) [b](other.md#two-code-words) [c](#here) ![d](picture.png) [e](https://nowhere) [f](other.md#again-1)\n"
        "`[in code](lost.md)`\n```\n[in code](lost.md)\n```\n"
        '[g](lost.md) [h](other.md#no-heading) [i](#there)\n![j](lost.png) <img src="gone.png"> [k](../outside.md)\n'
    )
    targets = ["lost.md", "other.md#no-heading", "#there", "lost.png", "../outside.md", "gone.png"]
    assert [line.split(": ")[1] for line in broken(page, tmp_path)] == targets
    assert anchors(tmp_path / "other.md") == {"two-code-words", "again", "again-1"}


@pytest.mark.parametrize("sound", [True, False])
def test_the_sites_build_fails_on_what_is_broken(sound: bool, tmp_path: Path) -> None:
    """With the settings of docs/conf.py and the flags of .ci/run."""
    command = "sphinx-build -q -W --keep-going docs site"
    assert command in (REPOSITORY / ".ci" / "run").read_text()
    shutil.copy(REPOSITORY / "docs" / "conf.py", tmp_path)
    (tmp_path / "other.md").write_text("# Other\n## A heading\n")
    (tmp_path / "index.md").write_text(
        "# Home\n[a](other.md#a-heading) [b](#home)\n\n```{toctree}\nother\n```\n"
        if sound
        else "# Home\n[a](lost.md) [b](other.md#lost-heading) [c](#lost-place) ![d](lost.png)\n\n```{toctree}\nother\nlost-page\n```\n"
    )
    flags = command.split()[1:-2]
    made = subprocess.run(
        [sys.executable, "-m", "sphinx", *flags, str(tmp_path), str(tmp_path / "site")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    lost = ("lost.md", "lost-heading", "lost-place", "lost.png", "lost-page")
    assert [name for name in lost if name in made.stderr] == ([] if sound else [*lost]), made.stderr
    assert (made.returncode == 0) == sound, made.stderr


def test_every_page_is_in_the_table_of_contents() -> None:
    index = REPOSITORY / "docs" / "index.md"
    listed = {line for block in re.findall(r"```{toctree}\n(.*?)```", text_of(index), re.DOTALL) for line in block.split("\n")}
    pages = {file.stem for file in (REPOSITORY / "docs").glob("*.md")} - {"index"}
    assert pages <= listed


def test_every_stage_and_every_section_has_a_page() -> None:
    rows = [line for line in text_of(STAGES).splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    stages = {file.stem for file in (REPOSITORY / "stages").glob("*.py")} - {"__init__"}
    assert named == stages | {field.name for field in dataclasses.fields(Params)}
    assert all(".md" in row.split("|")[-2] for row in rows)
