"""Evaluation of what the stages before it left on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.contracts.sealing import Origin
from pipeline.corpus.tokens import open_tokens
from pipeline.dictionaries.sharding import of_all, weights_of_all
from pipeline.dictionaries.store import load_dealt
from pipeline.distributed.group import mesh
from pipeline.errors import of_member
from pipeline.evaluation.baselines import load_principal_directions
from pipeline.evaluation.evaluator import Evaluator
from pipeline.evaluation.measured import Evaluation
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.evaluation.replaced_sets import full_sets, with_replacement
from pipeline.evaluation.split_tokens import SplitTokens
from pipeline.hook_keys import by_model
from pipeline.lm.loading import load_stated
from pipeline.norms.hook_norm import read_norms
from pipeline.processes import ONE_PROCESS, Reductions
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.lm.language_model import LanguageModel
    from pipeline.norms.hook_norm import HookNorm
    from pipeline.params.schema import Params


def evaluate_saved(
    params: Params, dictionary: str | Path, *, tokens: str | Path, norms: str | Path, statistics: str | Path
) -> Evaluation:
    """:func:`evaluate_together` of one dictionary directory."""
    places = {"": Path(dictionary)}
    return evaluate_together(params, places, tokens=tokens, norms=norms, statistics=statistics)[""]


def evaluate_together(
    params: Params,
    places: Mapping[str, Path],
    *,
    tokens: str | Path,
    norms: str | Path,
    statistics: str | Path,
    processes: Reductions = ONE_PROCESS,
) -> dict[str, Evaluation]:
    """Evaluate dictionary directories in their language models on the held-out split, in one pass.

    Args:
        params: sections `model`, `models` and `evaluation` are used.
        places: {name: directory of a dictionary, folded or with its run-time norm}; what is wrong with one of them is said by
            its name, if it has one.
        tokens: the token store.
        norms: norms.json of the norm stage, for a dictionary with a run-time norm.
        statistics: norm_statistics.safetensors of the norm stage: mean vectors and principal directions.
        processes: that evaluate together, data_parallel_size times model_parallel_size; the first one has the evaluations, the
            others get none.

    Raises:
        DataError: something of these is missing, damaged, or does not fit the rest.
        NumericsError: a non-finite value, or a metric that is undefined on this data.
    """
    rows, features = mesh(processes, params.distributed)
    store = open_tokens(tokens)
    held_out = SplitTokens(store.eval, store.eval.mask, params.evaluation.tokens, params.evaluation.batch_contexts)
    loaded = {}
    for name, place in places.items():
        with of_member(name):
            loaded[name] = load_dealt(place, features)
    hook_norms, origin = read_norms(norms, statistics)
    hooks = {name: (*dictionary.hooks_in, *dictionary.hooks_out) for name, dictionary in loaded.items()}
    written = dict.fromkeys(hook for dictionary in loaded.values() for hook in dictionary.hooks_out)
    principal = load_principal_directions(statistics, tuple(written))
    aliases = by_model(hook for own in hooks.values() for hook in own)
    models = {alias: load_stated(params.language_model(alias)) for alias in aliases}
    raws = {}
    for name, dictionary in loaded.items():
        own = {alias: models[alias] for alias in by_model(hooks[name])}
        with of_member(name):
            check_origin(dictionary, places[name], params, own, tokens=store.digest, norms=origin.digest)
            raws[name] = RawDictionary(dictionary.to(next(iter(models.values())).device), hook_norms)
    evaluator = Evaluator(models, raws, principal, held_out, processes=rows)
    n_runs = evaluator.n_runs
    evaluator.progress = Progress("evaluate", n_runs * held_out.n_tokens, unit=f"tokens in {n_runs} runs")
    evaluations = evaluator.evaluate_each(params.evaluation.pca_rank)
    evaluator.progress.close()
    if (n := params.evaluation.replacement_contexts) == 0:
        return evaluations
    few = SplitTokens(store.eval, store.eval.mask, n * store.eval.context_size, params.evaluation.batch_contexts)
    sets = full_sets(params, {name: _of_all(raw, hook_norms) for name, raw in raws.items()})
    return with_replacement(evaluations, sets, models, principal, few, params.evaluation.graph_tokens, processes)


def _of_all(raw: RawDictionary, norms: Mapping[str, HookNorm]) -> RawDictionary:
    """With the features of all processes: an attribution graph takes rows of encoder and decoder from anywhere."""
    own = raw.dictionary
    if own.feature_group.size == 1:
        return raw
    return RawDictionary(of_all(own, weights_of_all(own)).to(raw.device), norms)


def check_origin(
    dictionary: Dictionary, path: Path, params: Params, models: Mapping[str, LanguageModel], **digests: str | None
) -> None:
    """Refuse a dictionary that the fold stage has not made, or that was made from other inputs than are there.

    Args:
        dictionary: as loaded from `path`.
        params: where a store is named by activations.path, its tokens and models may be others, and are not compared.
        models: {alias: language model}.
        digests: of further inputs.

    Raises:
        DataError: the message names the input.
    """
    inputs = digests | {f"model {alias}".strip(): model.digest for alias, model in models.items()}
    Origin.of(dictionary.config.provenance).check(path, "fold", inputs if params.activations.path is None else {})
