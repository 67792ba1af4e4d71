"""python -m pipeline.params.documents: write params.yaml's comments, docs/params.schema.json, docs/params.md and
docs/settings.md again.

Run from the project's root after a change of a declaration. Values and layout of params.yaml stay as they are.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.params.documents.comments import commented
from pipeline.params.documents.json_schema import as_text, json_schema
from pipeline.params.documents.settings_table import settings_table
from pipeline.params.documents.table import table


def documents(root: Path) -> dict[Path, str]:
    """{file below `root`: what should be in it}."""
    params = root / "params.yaml"
    return {
        params: commented(params.read_text(encoding="utf-8")),
        root / "docs" / "params.schema.json": as_text(json_schema()) + "\n",
        root / "docs" / "params.md": table(),
        root / "docs" / "settings.md": settings_table(),
    }


@click.command(help=__doc__)
def main() -> None:
    """Write those files whose text changes, and name them."""
    for path, text in documents(Path()).items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        click.echo(f"{path} is written")


if __name__ == "__main__":
    main()
