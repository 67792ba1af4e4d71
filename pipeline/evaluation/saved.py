"""Evaluation of what the stages before it left on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.corpus.tokens import open_tokens
from pipeline.dictionaries.store import load_dictionary
from pipeline.evaluation.baselines import load_principal_directions
from pipeline.evaluation.evaluator import Evaluation, Evaluator, runs
from pipeline.evaluation.raw_space import RawDictionary
from pipeline.evaluation.split_tokens import SplitTokens
from pipeline.hook_keys import by_model
from pipeline.lm.loading import load_language_model
from pipeline.norms.hook_norm import load_norms
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.lm.language_model import LanguageModel
    from pipeline.params.schema import ModelParams, Params


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
    held_out = SplitTokens(store.eval, store.mask, params.evaluation.tokens, params.evaluation.batch_contexts)
    loaded = load_dictionary(dictionary)
    principal = load_principal_directions(statistics, loaded.hooks_out)
    hook_norms = load_norms(norms)
    models = {alias: _load(params.language_model(alias)) for alias in by_model((*loaded.hooks_in, *loaded.hooks_out))}
    raw = RawDictionary(loaded.to(next(iter(models.values())).device), hook_norms)
    n_runs = runs(loaded.hooks_out)
    progress = Progress("evaluate", n_runs * held_out.n_tokens, unit=f"tokens in {n_runs} runs")
    evaluation = Evaluator(models, raw, principal, held_out, progress).evaluate(params.evaluation.pca_rank)
    progress.close()
    return evaluation


def _load(model: ModelParams) -> LanguageModel:
    return load_language_model(
        model.model_name, revision=model.revision, backend=model.backend, dtype=model.dtype, device=model.device
    )
