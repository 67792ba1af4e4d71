"""The language models of a run by their configurations, and the widths of its hook points; no weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.hook_keys import MAIN, by_model, join_key
from pipeline.lm.loading import stated_widths

if TYPE_CHECKING:
    from pipeline.lm.source import ModelSource
    from pipeline.params.schema import Params


@dataclass(frozen=True)
class Sources:
    """What is known of the models.

    Attributes:
        models: {alias: configuration}, the main model first; further ones that have a hook point of the run.
        widths: {hook point: width} of what is stored, read or written.
    """

    models: dict[str, ModelSource]
    widths: dict[str, int]

    @property
    def main(self) -> ModelSource:
        """The main model, whose tokenizer is used."""
        return self.models[MAIN]


def sources_of(params: Params) -> Sources:
    """Resolve the models that `params` name.

    Raises:
        DataError: there is no such model, or it has no such hook point.
    """
    models: dict[str, ModelSource] = {}
    widths: dict[str, int] = {}
    hooks = by_model(dict.fromkeys((*params.hook_points, *params.dictionary_hook_points)))
    for alias in dict.fromkeys((MAIN, *hooks)):
        stated = params.language_model(alias)
        models[alias] = stated_widths(stated)
        widths |= {join_key(alias, hook): models[alias].hook_width(hook) for hook in hooks.get(alias, ())}
    return Sources(models, widths)
