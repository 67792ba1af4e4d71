"""A dictionary of the pipeline with its language models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.analysis.texts import feature_index
from pipeline.dictionaries.store import load_dealt
from pipeline.errors import DataError, unknown_name
from pipeline.evaluation.saved import check_origin
from pipeline.hook_keys import MAIN, by_model
from pipeline.lm.loading import load_stated
from pipeline.norms.hook_norm import load_norms
from pipeline.processes import ONE_PROCESS, Reductions

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.lm.language_model import LanguageModel
    from pipeline.norms.hook_norm import HookNorm
    from pipeline.params.schema import Params


@dataclass(frozen=True)
class Loaded:
    """What an analysis works on.

    Attributes:
        dictionary: on the models' device.
        models: {alias: language model}, "" being the main one.
        norms: {hook point: norm} of a dictionary that is not folded.
    """

    dictionary: Dictionary
    models: dict[str, LanguageModel]
    norms: dict[str, HookNorm] | None

    @property
    def alias(self) -> str:
        """Of the main model, or of the first one where the dictionary has no hook point of the main model."""
        return MAIN if MAIN in self.models else next(iter(self.models))

    @property
    def main(self) -> LanguageModel:
        """The main model, or the first one."""
        return self.models[self.alias]

    def model(self, alias: str) -> LanguageModel:
        """The model of an alias.

        Raises:
            DataError: the dictionary has no hook point of it.
        """
        if alias not in self.models:
            known = unknown_name("model", alias, filter(None, self.models))
            raise DataError(f"{known}; name one whose hook points the dictionary has")
        return self.models[alias]


def load_for_analysis(
    params: Params,
    dictionary: str | Path,
    *,
    norms: str | Path,
    known: dict[str, LanguageModel] | None = None,
    features: Sequence[str | int] = (),
    feature_group: Reductions = ONE_PROCESS,
    **digests: str,
) -> Loaded:
    """Load a dictionary directory and the models of its hook points; `digests` of further inputs that it was made from.

    Args:
        known: {alias: model of these parameters} that are loaded already; those that are loaded now are added. None: none.
        features: that the dictionary should have; this is looked at before a language model is loaded.
        feature_group: over the processes that the dictionary's features are dealt to.

    Raises:
        DataError: something is missing, damaged or made from other inputs, or there is no such feature.
    """
    loaded = load_dealt(dictionary, feature_group)
    for feature in features:
        feature_index(feature, loaded.feature_shape)
    models, known = {}, {} if known is None else known
    for alias in by_model((*loaded.hooks_in, *loaded.hooks_out)):
        if alias not in known:
            known[alias] = load_stated(params.language_model(alias))
        models[alias] = known[alias]
    check_origin(loaded, Path(dictionary), params, models, **digests)
    device = next(iter(models.values())).device
    return Loaded(loaded.to(device), models, None if loaded.config.folded else load_norms(norms))
