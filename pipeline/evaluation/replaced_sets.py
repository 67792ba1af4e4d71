"""Which of the evaluated dictionaries replace all MLPs together, and their figures in the evaluation of each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.errors import DataError
from pipeline.evaluation.full_set import FullSet
from pipeline.evaluation.replacement import ReplacementModel
from pipeline.hook_keys import MAIN
from pipeline.params.members import own_keys
from pipeline.processes import ONE_PROCESS, Reductions
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.evaluation.baselines import PrincipalDirections
    from pipeline.evaluation.measured import Evaluation
    from pipeline.evaluation.raw_space import RawDictionary
    from pipeline.evaluation.split_tokens import SplitTokens
    from pipeline.lm.language_model import LanguageModel
    from pipeline.params.schema import Params

HOOKS = "dictionary.hook_point"


def full_sets(params: Params, raws: Mapping[str, RawDictionary]) -> list[dict[str, RawDictionary]]:
    """The dictionaries by sets: of a sweep, those members together that differ in their hook points alone."""
    sets: dict[str, dict[str, RawDictionary]] = {}
    for name, raw in raws.items():
        keys = own_keys(params, name) if name in params.members else {}
        same = sorted((key, repr(value)) for key, value in keys.items() if not key.startswith(HOOKS))
        whole = len(raw.hooks_out) > 1  # of several layers: a set by itself
        sets.setdefault(repr((same, name if whole else "")), {})[name] = raw
    return list(sets.values())


def with_replacement(
    evaluations: Mapping[str, Evaluation],
    sets: list[dict[str, RawDictionary]],
    models: Mapping[str, LanguageModel],
    principal: Mapping[str, PrincipalDirections],
    held_out: SplitTokens,
    graph_tokens: int,
    processes: Reductions = ONE_PROCESS,
) -> dict[str, Evaluation]:
    """The evaluations with the figures of the replacement model (SPEC 7), the same for all of a set; or why there are none.

    Args:
        evaluations: of each dictionary.
        sets: {name: dictionary} of what may replace all MLPs together.
        models: {alias: language model}.
        principal: {written hook point: mean and directions} of the norm pass.
        held_out: the contexts.
        graph_tokens: first tokens of each context whose attribution graph is made.
        processes: that evaluate together; evaluations are those of the first one, of others there are none.
    """
    found = dict(evaluations)
    progress = Progress("replacement model", len(sets) * held_out.n_contexts, unit="contexts")
    for members in sets:
        try:
            if MAIN not in models:
                raise DataError("it has no hook point of the main model")
            full = FullSet(list(members.values()), models[MAIN])
            metrics = ReplacementModel(full, principal, graph_tokens, progress.update, processes).metrics(held_out)
        except DataError as error:
            who = f"{', '.join(members)}: " if any(members) else ""
            said = f"{who}no figures of the replacement model (evaluation.replacement_contexts): {error}"
            found |= {name: dataclasses.replace(found[name], said=said) for name in members if name in found}
            progress.update(held_out.n_contexts)
            continue
        for name in found.keys() & members.keys():
            found[name] = dataclasses.replace(found[name], metrics={**found[name].metrics, **metrics})
    progress.close()
    return found
