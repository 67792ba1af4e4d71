"""Train on open activations (a store, or live) or a stream of them, without the pipeline's files: the same code as its stages.

stream = stream_activations("demo", "demo", ["blocks.2.hook_resid_post"])
result = train_dictionary(stream, dictionary={"top_k": 24}, trainer={"total_training_tokens": 1_000_000})
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pipeline.activations.interface import Activations
from pipeline.activations.schema import calibration_rows, training_rows
from pipeline.arguments import FIELDS, checked, names, of_kind
from pipeline.errors import ParamsError
from pipeline.folding import StoredBatches, fold_dictionary
from pipeline.initialization.from_store import read_sample
from pipeline.norms.exclusion import MASSIVE_FACTOR
from pipeline.norms.hook_norm import hook_norm
from pipeline.norms.measure import compute_norms
from pipeline.norms.normalizer import Normalizer
from pipeline.norms.statistics import ActivationStatistics
from pipeline.params.choices import NORMS_OF_THE_DATA
from pipeline.params.dictionary_kinds import kind_fields
from pipeline.params.kinds.several_hook_points import SeveralHookPointsFields
from pipeline.params.sections.norm import NormParams
from pipeline.progress import Progress
from pipeline.streaming import ActivationStream, stream_activations
from pipeline.training import recipe
from pipeline.training.device import training_device
from pipeline.training.first_weights import first_weights, read_stated, untrained
from pipeline.training.fit import FitResult
from pipeline.training.fit_params import Rows, fit_params, held_back, holds_back
from pipeline.training.loop import train
from pipeline.training.model_loss import with_model_loss
from pipeline.training.on_batches import Given, train_on_batches
from pipeline.training.schedules import with_rate
from pipeline.training.source import StoreSource

if TYPE_CHECKING:
    from pipeline.lm.language_model import LanguageModel


@checked(
    activations=of_kind((Activations, ActivationStream, Iterable), "open activations, a stream of them, or batches in turn"),
    dictionary=FIELDS,
    trainer=FIELDS,
    initializer=FIELDS,
)
def train_dictionary(
    activations: Activations | ActivationStream | Iterable[Given],
    *,
    dictionary: Mapping[str, Any],
    trainer: Mapping[str, Any],
    initializer: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    buffer_size: int | None = None,
    max_norm_factor: float | None = MASSIVE_FACTOR,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> FitResult:
    """Train a dictionary on activations that are read as they are needed, and fold it.

    Fields that are not given take the embedded default's recipe (`recipe.py`).

    Args:
        activations: an open store, live activations, or a stream (whose batch_size and buffer_size are the defaults); or an
            iterator of batches of one's own, see :func:`pipeline.training.on_batches.train_on_batches`.
        dictionary: fields as for `build_dictionary`; widths are those of the hook points. Of activations of one hook point
            that one is read; else hook_point_in (hook_points_in) names them.
        trainer: fields of trainer (params.yaml); model_loss needs a stream, of a model that is loaded whole.
        initializer: fields of initializer, as of `fit`; needs no language model.
        batch_size: tokens, or contexts for activations-2d; None: the stream's, else 4,096.
        buffer_size: tokens mixed at a time; None: the stream's, else 1,048,576. What an iterator gives is not mixed.
        max_norm_factor: as activations.max_norm_factor.
        seed: of the draw of the weights and the order of the rows; the same seed gives the same bits on the CPU.
        device: of the training; None: cuda if there is one, else cpu.
        progress: show the progress lines of the stages norm and train on standard error.

    Returns: as :func:`pipeline.training.fit.fit`, on the device of the training. Norms are of the first 262,144 tokens (the
        default of norm.tokens). For BatchTopK, and JumpReLU with a target L0, the last rows are not trained on but set the
        inference threshold.

    Raises:
        ParamsError: unknown, mistyped or contradictory fields, all at once.
        DataError, NumericsError: no such hook point; non-finite activations; a non-finite loss, or a run that diverges.
    """
    if not isinstance(activations, (Activations, ActivationStream)):
        return train_on_batches(
            activations,
            dictionary=dictionary,
            trainer=trainer,
            initializer=initializer,
            batch_size=batch_size,
            max_norm_factor=max_norm_factor,
            seed=seed,
            device=device,
            progress=progress,
        )
    stream = activations if isinstance(activations, ActivationStream) else None
    store = activations.activations if isinstance(activations, ActivationStream) else activations
    batch_size = batch_size or (stream.batch_size if stream else 4096)
    buffer_size = buffer_size or (stream.buffer_size if stream else 2**20)
    config = _config(dict(dictionary), store)
    flat = store.target == "activations-1d"
    shape = Rows(store.n_rows, 1 if flat else store.context_size, not flat, store.source)
    stated, start = read_stated(initializer or {})
    params = fit_params(config, trainer, stated, shape, batch_size, max_norm_factor)
    drawn_by = params.initializer.drawn_by(seed)
    made = untrained(config, params, start, drawn_by).to(where := training_device(device))
    hooks = list(dict.fromkeys((*made.hooks_in, *made.hooks_out)))
    measured = _norms(store, hooks, max_norm_factor, progress)
    norms = {hook: hook_norm(statistics).to_dict() for hook, statistics in measured.items()}
    normalizer = Normalizer(made.config, norms)
    kept_back = held_back(shape, batch_size) * shape.tokens_per_row if holds_back(params) else 0
    rows = training_rows(store, kept_back)
    sample = read_sample(store, made, normalizer, rows, params.initializer.tokens)
    made = first_weights(made, sample, normalizer, params, start, drawn_by)
    source = StoreSource(
        store=store,
        hooks_in=made.hooks_in,
        hooks_out=made.hooks_out,
        batch_size=batch_size,
        rows=rows,
        limits=normalizer.excluded,
        buffer_rows=buffer_size,
        seed=seed,
        device=where if where.type == "cuda" else None,
    )
    label = "train" if progress else None
    rated = with_rate(params.trainer, made.config, params.total_steps, fine_tuning=start is not None)
    batches = with_model_loss(source, rated, params.total_steps)
    run = train(made, batches, params=rated, norms=norms, total_steps=params.total_steps, label=label)
    mode = "keep" if made.config.norm_activation in NORMS_OF_THE_DATA else "fold"
    held = calibration_rows(store, kept_back)
    calibration = StoredBatches.of(store, made, normalizer.norms, held, batch_size)
    report = fold_dictionary(made, norms, mode=mode, calibration_batches=calibration, target_l0=params.trainer.steered_l0)
    made.config = dataclasses.replace(made.config, norms=norms)
    return FitResult(made, report.dictionary, run.history.rows, norms)


@checked(hook_points=names, dictionary=FIELDS, trainer=FIELDS, initializer=FIELDS)
def train_on_text(
    model: LanguageModel | str,
    dataset: str | Iterable[str],
    hook_points: Sequence[str],
    *,
    dictionary: Mapping[str, Any],
    trainer: Mapping[str, Any],
    initializer: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
    **stream: Any,
) -> FitResult:
    """From a language model and text to a folded dictionary, in one call: a stream, and :func:`train_dictionary` on it.

    Args:
        model, dataset, hook_points, stream: as :func:`pipeline.streaming.stream_activations`.
        dictionary, trainer, initializer, seed, device, progress: as :func:`train_dictionary`.
    """
    if isinstance(model, str) and trainer.get("model_loss") is not None:
        from pipeline.lm.loading import load_language_model

        model = load_language_model(model)  # whole, with its logits
    made = stream_activations(model, dataset, hook_points, **stream)
    return train_dictionary(
        made, dictionary=dictionary, trainer=trainer, initializer=initializer, seed=seed, device=device, progress=progress
    )


def _norms(store: Activations, hooks: list[str], factor: float | None, progress: bool) -> dict[str, ActivationStatistics]:
    """Statistics of the first tokens; with a stream the language model runs meanwhile, so that it takes a while."""
    n_tokens, n_hooks = min(NormParams.tokens or store.n_tokens, store.n_tokens), len(hooks)
    if not progress:
        return compute_norms(store, n_tokens, max_norm_factor=factor, hook_points=hooks)
    shown = Progress("norm", n_tokens, unit=f"tokens at {n_hooks} hook point{'' if n_hooks == 1 else 's'}")
    found = compute_norms(store, n_tokens, max_norm_factor=factor, hook_points=hooks, done=shown.update)
    shown.close()
    return found


def _config(given: dict[str, Any], store: Activations) -> dict[str, Any]:
    """The dictionary's configuration, widths read from the activations."""
    kind = given.setdefault("kind", "sae")
    several = issubclass(kind_fields(kind), SeveralHookPointsFields)
    key = "hook_points_in" if several else "hook_point_in"
    if key not in given:
        if not several and len(store.hook_points) != 1:
            raise ParamsError(f"dictionary.{key}: missing; the activations have {', '.join(store.hook_points)}: name one")
        given[key] = tuple(store.hook_points) if several else store.hook_points[0]
    config = recipe.dictionary_fields(given)
    config.pop("d_model", None)
    read = config[key][0] if several else config[key]
    written = config.get(key.replace("_in", "_out")) or config[key]
    return {**config, "d_in": store.width(read), "d_out": store.width(written[0] if several else written)}
