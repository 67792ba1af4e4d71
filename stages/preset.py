"""preset: print a preset as flags for DVC, `dvc exp run $(python -m stages.preset pythia-160m)`.

Reads presets/NAME.yaml and what it extends, and checks it as laid over the parameter file. Writes nothing. Later flags
win, so a further `-S trainer.lr=2e-4` after it changes one key.
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
@click.option("--yaml", "as_yaml", is_flag=True, help="Print a whole parameter file with the preset in it.")
def main(params: str, name: str | None, listing: bool, as_yaml: bool) -> None:
    """Print preset NAME as `-S key=value` flags for `dvc exp run`."""
    from pipeline.params.presets import header, preset_names

    if listing:
        for known in preset_names():
            title, *rest = header(known)
            click.echo("\n".join([title, *(f"  {line}" for line in rest)]))
        return
    try:
        if name is None:
            raise ParamsError(f"which preset? (known: {', '.join(preset_names())})")
        click.echo(text_of(name, params, as_yaml))
    except ParamsError:
        if not sys.stdout.isatty() and not as_yaml:
            # In `dvc exp run $(...)` the failure is lost and the default would run: give dvc a flag that it refuses.
            click.echo(f"--no-such-preset={re.sub('[^A-Za-z0-9._-]', '_', name or 'none')}")
        raise


def text_of(name: str, params: str, as_yaml: bool) -> str:
    """The flags, or the whole parameter file, of a preset that was checked over `params`."""
    import yaml

    from pipeline.params.preset_flags import flags_over
    from pipeline.params.presets import apply_preset

    if as_yaml:
        return yaml.safe_dump(apply_preset(name, params).to_dict(), sort_keys=False, default_flow_style=None).rstrip()
    return " ".join(flags_over(name, params))


if __name__ == "__main__":
    main()
