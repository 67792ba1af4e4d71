"""preset: print a preset as flags for DVC, `dvc exp run $(python -m stages.preset pythia-160m)`.

Reads presets/NAME.yaml and what it extends, and checks it as laid over the parameter file. Writes nothing. Later flags
win, so a further `-S trainer.lr=2e-4` after it changes one key. With --from-settings FILE the preset is what a settings
file of Language-Model-SAEs says (docs/settings.md); what has no counterpart is named on standard error.
"""

from __future__ import annotations

import re
import sys

import click

from pipeline.command import stage_command
from pipeline.errors import ParamsError


@stage_command
@click.argument("name", required=False)
@click.option("--list", "listing", is_flag=True, help="List the presets and what they cost.")
@click.option("--from-settings", "settings", help="Settings of Language-Model-SAEs (TOML, JSON, YAML) in the preset's place.")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print a whole parameter file with the preset in it.")
def main(params: str, name: str | None, listing: bool, settings: str | None, as_yaml: bool) -> None:
    """Print preset NAME as `-S key=value` flags for `dvc exp run`."""
    from pipeline.params.presets import header, preset_names

    if listing:
        for known in preset_names():
            title, *rest = header(known)
            click.echo("\n".join([title, *(f"  {line}" for line in rest)]))
        return
    try:
        click.echo(_text(name, settings, params, as_yaml))
    except ParamsError:
        if not sys.stdout.isatty() and not as_yaml:
            # In `dvc exp run $(...)` the failure is lost and the default would run: give dvc a flag that it refuses.
            click.echo(f"--no-such-preset={re.sub('[^A-Za-z0-9._-]', '_', name or 'none')}")
        raise


def _text(name: str | None, settings: str | None, params: str, as_yaml: bool) -> str:
    """The text of a preset, or of a settings file, of which a line is said for each key that has no counterpart."""
    from pipeline.params.lm_saes.overlay import settings_overlay
    from pipeline.params.preset_flags import text_over
    from pipeline.params.presets import preset_names, read_preset

    if (name is None) == (settings is None):
        raise ParamsError(f"give a preset or --from-settings FILE, one of them (presets: {', '.join(preset_names())})")
    if settings is None:
        return text_over(read_preset(name or ""), params, f"preset {name}", as_yaml)
    values, notes = settings_overlay(settings, params)
    text = text_over(values, params, settings, as_yaml)
    click.echo("\n".join(f"note: {note}" for note in notes), err=True, nl=bool(notes))
    return text


if __name__ == "__main__":
    main()
