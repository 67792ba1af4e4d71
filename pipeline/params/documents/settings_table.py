"""docs/settings.md: what becomes of each key of the reference's settings, written from its table."""

from __future__ import annotations

from pipeline.params.lm_saes.declared import Config, Key
from pipeline.params.lm_saes.table import GENERATE, TRAIN

_HEAD = """\
# Settings of Language-Model-SAEs

Written by `python -m pipeline.params.documents` from pipeline/params/lm_saes; do not edit.

    python -m stages.preset --from-settings train.toml              # flags for dvc exp run, as of a preset
    python -m stages.preset --from-settings train.toml --yaml       # a whole parameter file

reads settings of that library's `train` and `generate` commands (lm-saes 2.0, now llamascopium; TOML, JSON or YAML) as a
preset: what they do not state has that library's default. Each key that has no counterpart is named on standard error, with
the reason and the nearest way; so is one that does nothing beside the others, one that means something else here, and a
length that is shortened so that the run reaches what it is to end with. An unknown key, a wrong type or a damaged file is
refused with a line.

Text is packed into contexts of one length, where that library gives each document a context of its own. Settings of a
training on text are `activations.source: live`. Those of a training on activations from files leave the model and the text
as the parameter file has them; settings of a generation, laid before, state those: they change model, text and activations
alone.
"""


def settings_table() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(part for config in _configs() for part in _section(config))])


def _configs() -> list[Config]:
    """Every class of settings once, outer ones first."""
    found: list[Config] = []
    waiting = [*TRAIN.values(), GENERATE]
    while waiting:
        config = waiting.pop(0)
        if config not in found:
            found.append(config)
            waiting += [key.nested for key in config.keys if key.nested is not None]
    return found


def _section(config: Config) -> list[str]:
    rows = [f"| `{key.name}` | {_here(key)} |" for key in config.keys]
    return [f"## {config.name}", "| key | here |", "|---|---|", *rows, ""]


def _here(key: Key) -> str:
    if key.to:
        return f"`{key.to}`"
    text = key.why.replace("|", "\\|")
    return text if key.read else f"no counterpart: {text}"
