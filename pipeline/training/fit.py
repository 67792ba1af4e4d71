"""Train on tensors in memory: norms, initialisation, the step loop and the fold of the pipeline, without its files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.dictionaries.base import Dictionary
from pipeline.errors import DataError, ParamsError
from pipeline.folding import fold_dictionary
from pipeline.initialization.compose import build_base, check, initialize_
from pipeline.initialization.normalization import Normalizer
from pipeline.initialization.sample import make_sample
from pipeline.norms_statistics import ActivationStatistics
from pipeline.params.cross_section import UNFOLDABLE
from pipeline.params.fields import Refused
from pipeline.params.schema import (
    ActivationsParams,
    FoldParams,
    InitializerParams,
    Params,
    TrainerParams,
    section_from_dict,
)
from pipeline.params.sections.dictionary import kind_class
from pipeline.seeding import generator
from pipeline.training import recipe
from pipeline.training.device import training_device
from pipeline.training.loop import train
from pipeline.training.source import TensorSource

_NOT_IN_PARAMS = ("d_in", "d_out", "d_sae", "d_model", "expansion_factor", "hook_point_in", "hook_point_out")


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What `fit` gives.

    Attributes:
        dictionary: as trained; takes and returns normalised activations.
        inference: its inference form; takes and returns raw activations (with token-wise or batch-wise norms, which cannot
            be folded: normalised ones).
        history: figures of the log steps, as in metrics/train_history.jsonl.
        norms: {hook point: {"mean_norm", "mean_square", "d"}} of the activations.
    """

    dictionary: Dictionary
    inference: Dictionary
    history: list[dict[str, Any]]
    norms: dict[str, dict[str, Any]]


def fit(
    activations: Tensor,
    *,
    targets: Tensor | None = None,
    dictionary: Mapping[str, Any],
    trainer: Mapping[str, Any],
    initializer: Mapping[str, Any] | None = None,
    batch_size: int = 4096,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> FitResult:
    """Train a dictionary on activations in memory, with the pipeline's own step code.

    Fields that are not given take the embedded default's recipe (`recipe.py`).

    Args:
        activations: raw, [N, D] tokens or [n, T, D] contexts.
        targets: labels [N, D_out] or [n, T, D_out] of a transcoder; None: the activations.
        dictionary: fields as for `build_dictionary`; d_in and d_out are read from the tensors, kind from `targets`.
        trainer: fields of trainer (params.yaml).
        initializer: fields of initializer; needs no language model.
        batch_size: tokens, or contexts for [n, T, D].
        seed: of the draw of the weights and the order of the rows; the same seed gives the same bits on the CPU.
        device: None: cuda if there is one, else cpu.
        progress: show a progress line on standard error.

    Returns: on the device of the training. For BatchTopK, and JumpReLU with a target L0, the last rows (up to 16,384 tokens,
        at least a batch, at most a tenth of them where that is more) are not trained on but set the inference threshold.

    Raises:
        ParamsError: unknown, mistyped or contradictory fields, all at once; shapes that do not fit them.
        DataError, NumericsError: non-finite activations; a non-finite loss.
    """
    labels = activations if targets is None else targets
    _check_shapes(activations, labels)
    config = _config(dictionary, activations, labels, targets is not None)
    params = _params(config, dict(trainer), dict(initializer or {}), activations, batch_size, seed)
    unit_rows = params.trainer.decoder_constraint == "unit_norm"
    made = build_base(config, params.initializer, seed, unit_rows=unit_rows).to(training_device(device))
    check(made, params.initializer, has_model=False)
    norms = _norms(made, activations, labels)
    held = _held_back(made, activations, batch_size) if made.is_batch_dependent or params.trainer.steered_l0 else 0
    kept = len(activations) - held
    inputs = activations[:kept]
    wanted = inputs if targets is None else labels[:kept]
    _initialize_(made, inputs, wanted, norms, params)
    run = train(
        made,
        TensorSource(inputs, wanted, batch_size=batch_size, seed=seed, token_dims=activations.ndim - 1),
        params=params.trainer,
        norms=norms,
        total_steps=params.total_steps,
        label="fit" if progress else None,
    )
    mode = "keep" if made.config.norm_activation in UNFOLDABLE else "fold"
    held_back = list(_batches(activations[kept:], batch_size))
    report = fold_dictionary(made, norms, mode=mode, calibration_batches=held_back, target_l0=params.trainer.steered_l0)
    made.config = dataclasses.replace(made.config, norms=norms)
    return FitResult(made, report.dictionary, run.history.rows, norms)


def _initialize_(made: Dictionary, inputs: Tensor, labels: Tensor, norms: Mapping[str, Any], params: Params) -> None:
    """The initialisation's strategies, on the first initializer.tokens tokens of a random order of the rows."""
    n_rows = min(len(inputs), -(-params.initializer.tokens // inputs[0, ..., 0].numel()))
    rows = torch.randperm(len(inputs), generator=generator(params.seed, "initialize", "sample"))[:n_rows].to(inputs.device)
    device = next(made.parameters()).device
    sampled = inputs[rows].to(device)
    sample = make_sample(made, Normalizer(made, norms), sampled, sampled if labels is inputs else labels[rows].to(device))
    initialize_(
        made,
        sample,
        params.initializer,
        batch_rows=params.activations.tokens_per_batch,
        seed=params.seed,
        unit_rows=params.trainer.decoder_constraint == "unit_norm",
        target_l0=params.trainer.steered_l0,
    )


def _check_shapes(activations: Tensor, labels: Tensor) -> None:
    if activations.ndim not in (2, 3) or activations.shape[:-1] != labels.shape[:-1] or not activations.is_floating_point():
        raise ParamsError(
            "fit: activations should be floating point [N, D] or [n, T, D], and targets of the same tokens; got "
            f"{activations.dtype} {tuple(activations.shape)} and {tuple(labels.shape)}"
        )


def _config(given: Mapping[str, Any], activations: Tensor, labels: Tensor, transcoder: bool) -> dict[str, Any]:
    """The dictionary's configuration, widths checked against the tensors."""
    stated = {"kind": "transcoder" if transcoder else "sae", **given}
    if transcoder and stated["kind"] == "sae":
        stated.setdefault("hook_point_out", "output")
    config = recipe.dictionary_fields(stated)
    d_in = config.pop("d_model", None) or config.get("d_in") or activations.shape[-1]
    d_out = config.get("d_out") or labels.shape[-1]
    faults = [
        f"dictionary.{name}: {stated}, but the {what} are {found} wide"
        for name, stated, found, what in (
            ("d_in", d_in, activations.shape[-1], "activations"),
            ("d_out", d_out, labels.shape[-1], "targets"),
        )
        if stated != found
    ]
    if faults:
        raise ParamsError(faults)
    return {**config, "d_in": d_in, "d_out": d_out}


def _params(
    config: Mapping[str, Any],
    trainer: dict[str, Any],
    initializer: dict[str, Any],
    activations: Tensor,
    batch_size: int,
    seed: int,
) -> Params:
    """All parameters, so that everything that a file is checked for is checked here too."""
    flat = activations.ndim == 2
    shared = {key: value for key, value in config.items() if key not in _NOT_IN_PARAMS}
    try:
        section = kind_class(config["kind"])
    except Refused as refused:
        raise ParamsError(f"dictionary.kind: {refused}") from None
    known = {field.name for field in dataclasses.fields(section)}
    complete = recipe.trainer_fields(trainer, config)
    calibrated = config["act_fn"] == "batchtopk" or complete.get("target_l0") is not None
    batches = ActivationsParams(
        context_size=128 if flat else max(activations.shape[1], 2),
        total_tokens=activations[..., 0].numel(),
        batch_size=batch_size,
        target="activations-1d" if flat else "activations-2d",
    )
    return Params(
        seed=seed,
        activations=batches,
        dictionary=section_from_dict(section, {k: v for k, v in shared.items() if k in known}),
        initializer=section_from_dict(InitializerParams, recipe.initializer_fields(initializer, config, complete)),
        trainer=section_from_dict(TrainerParams, complete),
        # At least that many are held back where an inference threshold is set: see _held_back.
        fold=FoldParams(mode="keep", calibration_tokens=batches.tokens_per_batch if calibrated else 0),
    )


def _norms(dictionary: Dictionary, activations: Tensor, labels: Tensor) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for hook, tensor in ((dictionary.hooks_in[0], activations), (dictionary.hooks_out[0], labels)):
        if hook in found:
            continue
        statistics = ActivationStatistics(tensor.shape[-1])
        statistics.update(tensor)
        if statistics.nonfinite:
            raise DataError(f"fit: {statistics.nonfinite} of the tokens at '{hook}' hold non-finite values")
        found[hook] = {"mean_norm": statistics.mean_norm, "mean_square": statistics.mean_square, "d": tensor.shape[-1]}
    return found


def _held_back(dictionary: Dictionary, activations: Tensor, batch_size: int) -> int:
    """Rows kept from training for the inference thresholds: whole batches."""
    per_row = activations[0, ..., 0].numel()
    rows = min(-(-recipe.CALIBRATION_TOKENS // per_row), len(activations) // 10)
    rows = max(rows // batch_size, 1) * batch_size
    if rows + batch_size > len(activations):
        raise ParamsError(
            f"batch_size: {batch_size} leaves nothing to train on of {len(activations)} rows, since one batch sets the "
            f"inference threshold of act_fn '{dictionary.config.act_fn}'"
        )
    return rows


def _batches(rows: Tensor, batch_size: int) -> Iterator[Tensor]:
    for start in range(0, len(rows) - batch_size + 1, batch_size):
        yield rows[start : start + batch_size]
