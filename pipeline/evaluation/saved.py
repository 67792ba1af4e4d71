"""Evaluation of what the stages before it left on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.contracts.sealing import Origin
from pipeline.corpus.tokens import open_tokens
from pipeline.dictionaries.store import load_dictionary
from pipeline.evaluation.baselines import load_principal_directions
from pipeline.evaluation.evaluator import Evaluation, Evaluator, runs
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.evaluation.split_tokens import SplitTokens
from pipeline.hook_keys import by_model
from pipeline.lm.loading import load_stated
from pipeline.norms.hook_norm import read_norms
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.dictionaries.base import Dictionary
    from pipeline.lm.language_model import LanguageModel
    from pipeline.params.schema import Params


def evaluate_saved(
    params: Params, dictionary: str | Path, *, tokens: str | Path, norms: str | Path, statistics: str | Path
) -> Evaluation:
    """Evaluate a dictionary directory in its language models on the held-out split.

    Args:
        params: sections `model`, `models` and `evaluation` are used.
        dictionary: directory of the dictionary, folded or with its run-time norm.
        tokens: the token store.
        norms: norms.json of the norm stage, for a dictionary with a run-time norm.
        statistics: norm_statistics.safetensors of the norm stage: mean vectors and principal directions.

    Raises:
        DataError: something of these is missing, damaged, or does not fit the rest.
        NumericsError: a non-finite value, or a metric that is undefined on this data.
    """
    store = open_tokens(tokens)
    held_out = SplitTokens(store.eval, store.eval.mask, params.evaluation.tokens, params.evaluation.batch_contexts)
    loaded = load_dictionary(dictionary)
    hook_norms, origin = read_norms(norms, statistics)
    principal = load_principal_directions(statistics, loaded.hooks_out)
    models = {alias: load_stated(params.language_model(alias)) for alias in by_model((*loaded.hooks_in, *loaded.hooks_out))}
    check_origin(loaded, Path(dictionary), params, models, tokens=store.digest, norms=origin.digest)
    raw = RawDictionary(loaded.to(next(iter(models.values())).device), hook_norms)
    n_runs = runs(loaded.hooks_out)
    progress = Progress("evaluate", n_runs * held_out.n_tokens, unit=f"tokens in {n_runs} runs")
    evaluation = Evaluator(models, raw, principal, held_out, progress).evaluate(params.evaluation.pca_rank)
    progress.close()
    return evaluation


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
