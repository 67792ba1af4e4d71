"""Train on tensors in memory: norms, initialisation, the step loop and the fold of the pipeline, without its files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.arguments import FIELDS, checked
from pipeline.dictionaries.base import Dictionary
from pipeline.errors import ParamsError
from pipeline.folding import fold_dictionary
from pipeline.initialization.sample import Sample, make_sample
from pipeline.norms.exclusion import MASSIVE_FACTOR
from pipeline.norms.normalizer import Normalizer
from pipeline.params.choices import NORMS_OF_THE_DATA
from pipeline.params.schema import FitParams
from pipeline.seeding import generator
from pipeline.training import recipe
from pipeline.training.device import training_device
from pipeline.training.first_weights import first_weights, read_stated, untrained
from pipeline.training.fit_params import fit_params, held_back, holds_back
from pipeline.training.loop import train
from pipeline.training.schedules import with_rate
from pipeline.training.source import Source, TensorSource
from pipeline.training.tensors import Activations, TensorData, read_tensors


@dataclasses.dataclass(frozen=True, repr=False)
class FitResult:
    """What `fit` gives.

    Attributes:
        dictionary: as trained; takes and returns normalised activations.
        inference: its inference form; takes and returns raw activations (with token-wise or batch-wise norms, which cannot
            be folded: normalised ones).
        history: figures of the log steps, as in metrics/train_history.jsonl.
        norms: {hook point: {"mean_norm", "mean_square", "d", ...}} of the activations, with the rule by which massive tokens
            were left out and their number (see pipeline.norms.hook_norm.HookNorm).
    """

    dictionary: Dictionary
    inference: Dictionary
    history: list[dict[str, Any]]
    norms: dict[str, dict[str, Any]]

    def __repr__(self) -> str:
        return (
            f"FitResult(inference {self.inference!r}, history of {len(self.history)} log steps, norms of "
            f"{', '.join(self.norms)})"
        )


@checked(dictionary=FIELDS, trainer=FIELDS, initializer=FIELDS)
def fit(
    activations: Activations,
    *,
    targets: Activations | None = None,
    dictionary: Mapping[str, Any],
    trainer: Mapping[str, Any],
    initializer: Mapping[str, Any] | None = None,
    batch_size: int = 4096,
    max_norm_factor: float | None = MASSIVE_FACTOR,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> FitResult:
    """Train a dictionary on activations in memory, with the pipeline's own step code.

    Fields that are not given take the embedded default's recipe (`recipe.py`).

    Args:
        activations: raw, [N, D] tokens or [n, T, D] contexts; {name: such a tensor} for a kind with several hook points, whose
            dictionary takes them stacked, [..., L, D], in this order.
        targets: labels in the same form, with D_out, of a kind that writes another hook point; None: the activations.
        dictionary: fields as for `build_dictionary`; d_in, d_out and the hook points' names are read from the tensors. Without
            kind: sae, with targets transcoder; of tensors by name crosscoder, with targets clt.
        trainer: fields of trainer (params.yaml).
        initializer: fields of initializer; needs no language model. from_dictionary, of which the run starts, may be a
            dictionary in memory too, with its norms in config.norms unless it is folded.
        batch_size: tokens, or contexts for [n, T, D].
        max_norm_factor: tokens longer than this times the median norm of any hook point are excluded, as by
            activations.max_norm_factor; None: all are trained on.
        seed: of the draw of the weights and the order of the rows; the same seed gives the same bits on the CPU.
        device: None: cuda if there is one, else cpu.
        progress: show a progress line on standard error.

    Returns: on the device of the training. For BatchTopK, and JumpReLU with a target L0, the last rows (up to 16,384 tokens,
        at least a batch, at most a tenth of them where that is more) are not trained on but set the inference threshold.

    Raises:
        ParamsError: unknown, mistyped or contradictory fields, all at once; other shapes.
        DataError, NumericsError: non-finite activations; a non-finite loss, or a run that diverges.

    Warns (UserWarning) of an act_fn that nothing makes sparse, and of fields of trainer that change nothing beside the others.
    """
    given = dict(dictionary)
    data = read_tensors(activations, targets, given.pop("kind", None))
    config = config_of(given, data)
    stated, start = read_stated(initializer or {})
    params = fit_params(config, trainer, stated, data.shape, batch_size, max_norm_factor)
    drawn_by = params.initializer.drawn_by(seed)
    made = untrained(config, params, start, drawn_by).to(training_device(device))
    return fitted(
        made,
        data,
        params,
        lambda rows, normalizer: TensorSource.of(rows, batch_size=batch_size, seed=seed),
        start=start,
        seed=drawn_by,
        label="fit" if progress else None,
    )


def fitted(
    made: Dictionary,
    data: TensorData,
    params: FitParams,
    source_of: Callable[[TensorData, Normalizer], Source],
    *,
    start: Dictionary | None,
    seed: int,
    label: str | None,
) -> FitResult:
    """Train and fold a dictionary.

    Args:
        made: as :func:`untrained` gives it, on its device.
        data: of which norms and first weights are made; of BatchTopK, and JumpReLU with a target L0, the last rows set the
            inference threshold.
        params: all parameters.
        source_of: batches to train on, of the rows of `data` that are neither excluded nor held back, and of the normalizer.
        start: the dictionary to start from; None: weights are drawn.
        seed: of the draw.
        label: of what is said on standard error; None: nothing is.
    """
    batch_size = params.activations.batch_size
    norms = data.norms(made.hooks_in, made.hooks_out, params.activations.max_norm_factor)
    normalizer = Normalizer(made.config, norms)
    data = data.without(normalizer.excluded.above(normalizer.by_hook(data.inputs, data.labels)))
    held = held_back(data.shape, batch_size) if holds_back(params) else 0
    kept, rest = data.rows(0, len(data) - held), data.rows(len(data) - held, len(data))
    made = first_weights(made, _sample(made, kept, normalizer, params, seed), normalizer, params, start, seed)
    rated = with_rate(params.trainer, made.config, params.total_steps, fine_tuning=start is not None)
    source = source_of(kept, normalizer)
    run = train(made, source, params=rated, norms=norms, total_steps=params.total_steps, label=label)
    mode = "keep" if made.config.norm_activation in NORMS_OF_THE_DATA else "fold"
    batches = list(_batches(rest, normalizer, batch_size))
    report = fold_dictionary(made, norms, mode=mode, calibration_batches=batches, target_l0=params.trainer.steered_l0)
    made.config = dataclasses.replace(made.config, norms=norms)
    return FitResult(made, report.dictionary, run.history.rows, norms)


def _sample(made: Dictionary, data: TensorData, normalizer: Normalizer, params: FitParams, seed: int) -> Sample:
    """The first initializer.tokens tokens of a random order of the rows."""
    n_rows = min(len(data), -(-params.initializer.tokens // data.tokens_per_row))
    order = torch.randperm(len(data), generator=generator(seed, "initialize", "sample"))
    rows, device = order[:n_rows].to(data.inputs.device), next(made.parameters()).device
    inputs = data.inputs[rows].to(device)
    labels = inputs if data.labels is data.inputs else data.labels[rows].to(device)
    mask = None if data.mask is None else data.mask[rows].to(device)
    return make_sample(made, normalizer, inputs, labels, mask)


def config_of(given: Mapping[str, Any], data: TensorData) -> dict[str, Any]:
    """The dictionary's configuration, widths checked against the tensors."""
    stated = {**data.config_fields(), **given}
    if not data.names_in and data.labels is not data.inputs:
        stated.setdefault("hook_point_out", "output")
    config = recipe.dictionary_fields(stated)
    d_in = config.pop("d_model", None) or config.get("d_in") or data.inputs.shape[-1]
    d_out = config.get("d_out") or data.labels.shape[-1]
    faults = [
        f"dictionary.{name}: {stated}, but the {what} are {found} wide"
        for name, stated, found, what in (
            ("d_in", d_in, data.inputs.shape[-1], "activations"),
            ("d_out", d_out, data.labels.shape[-1], "targets"),
        )
        if stated != found
    ]
    if faults:
        raise ParamsError(faults)
    return {**config, "d_in": d_in, "d_out": d_out}


def _batches(data: TensorData, normalizer: Normalizer, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Whole batches and their masks, massive tokens masked."""
    for start in range(0, len(data) - batch_size + 1, batch_size):
        part = data.rows(start, start + batch_size)
        yield part.inputs, normalizer.massive.kept(normalizer.by_hook(part.inputs, part.labels), part.mask)
