"""Finding dictionary kinds by name, and building a dictionary from a plain configuration.

Adding a kind is its fields (pipeline/params/kinds), its subclass of Dictionary, and a row in
pipeline/params/dictionary_kinds.py, or an entry point of another package. Trainer, evaluation and folding use the interface
of base.py only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.arguments import checked, of_kind, whole
from pipeline.dictionaries.initial import BaseInitialization
from pipeline.params.dictionary_config import DictionaryConfig
from pipeline.params.dictionary_kinds import KINDS
from pipeline.params.section import section_from_dict

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary


def kind_names() -> tuple[str, ...]:
    """All kinds, without importing their files."""
    return KINDS.names()


def dictionary_class(kind: str) -> type[Dictionary]:
    """The class of `kind`.

    Raises:
        ParamsError: there is none; the message lists all and the nearest.
    """
    found: type[Dictionary] = KINDS.load(kind)
    return found


def config_from_dict(values: Mapping[str, Any]) -> DictionaryConfig:
    """Read a configuration strictly: `d_model` is d_in, `expansion_factor` gives d_sae = int(d_in * expansion_factor).

    Raises:
        ParamsError: unknown kind, or faults in the fields, all at once.
    """
    return section_from_dict(DictionaryConfig, values)  # type: ignore[type-abstract]


@checked(config=of_kind(Mapping, "fields such as {'kind': 'sae', 'd_in': 128, 'top_k': 16}"), seed=whole())
def build_dictionary(config: Mapping[str, Any], *, seed: int = 0) -> Dictionary:
    """Make a dictionary and draw its base initialisation.

    Args:
        config: kind, d_in (or d_model), d_out, expansion_factor or d_sae, act_fn, ... (the fields of DictionaryConfig
            and of the kind), and optionally the fields of :class:`BaseInitialization`, which are used and not kept.
        seed: of all random draws; the same seed gives the same weights.

    Returns: an unfolded dictionary that takes and returns normalised activations.

    Raises:
        ParamsError: unknown, missing, mistyped or contradicting fields, all at once.
    """
    names = {field.name for field in dataclasses.fields(BaseInitialization)}
    initialization = BaseInitialization(**{k: v for k, v in config.items() if k in names})
    resolved = config_from_dict({k: v for k, v in config.items() if k not in names})
    dictionary = dictionary_class(resolved.kind)(resolved)
    dictionary.initialize_(seed, initialization)
    return dictionary
