"""preset: print a preset as flags for DVC, `dvc exp run $(python -m stages.preset pythia-160m)`.

Reads presets/NAME.yaml and what it extends, and checks it as laid over the parameter file. Writes nothing. The flags are those
that the parameter file does not say already. Later flags win, so a further `-S trainer.lr=2e-4` changes one key; given to this
script, it is checked with the rest. With --on MODEL the flags are the preset's recipe on that model
(pipeline/params/recipes.py): text, lengths and what else is no recipe stay as they are. With --from-settings FILE the preset is
what a settings file of Language-Model-SAEs says (docs/settings.md); what has no counterpart is named on standard error.
"""

from __future__ import annotations

import re
import sys

import click

from pipeline.command import stage_command
from pipeline.errors import PipelineError


@stage_command
@click.argument("name", required=False)
@click.option("--list", "listing", is_flag=True, help="List the presets and what they cost.")
@click.option("--on", "model", help="Model that the preset's recipe is used on: hub id, directory, GGUF file, or demo.")
@click.option("--layer", type=int, help="With --on: block of the recipe's highest hook point; without: the middle one.")
@click.option("-S", "overrides", multiple=True, help="key=value, laid over the preset.")
@click.option("--from-settings", "settings", help="Settings of Language-Model-SAEs (TOML, JSON, YAML) in the preset's place.")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print a whole parameter file with the preset in it.")
def main(params: str, name: str | None, listing: bool, as_yaml: bool, **source: str | None) -> None:
    """Print preset NAME as `-S key=value` flags for `dvc exp run`."""
    from pipeline.params.presets import header, preset_names

    if listing:
        for known in preset_names():
            title, *rest = header(known)
            click.echo("\n".join([title, *(f"  {line}" for line in rest)]))
        return
    try:
        from pipeline.planning.recipe import preset_text

        text, notes = preset_text(name, params, as_yaml=as_yaml, **source)  # type: ignore[arg-type]
    except PipelineError:
        if not sys.stdout.isatty() and not as_yaml:
            # In `dvc exp run $(...)` the failure is lost and the default would run: give dvc a flag that it refuses.
            click.echo(f"--no-such-preset={re.sub('[^A-Za-z0-9._-]', '_', name or 'none')}")
        raise
    click.echo(text)
    click.echo("\n".join(notes), err=True, nl=bool(notes))


if __name__ == "__main__":
    main()
