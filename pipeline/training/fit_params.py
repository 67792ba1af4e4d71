"""The parameters of a training that is asked for in Python, completed by the recipe and checked as those of a file are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.errors import ParamsError
from pipeline.params.choices import STORE
from pipeline.params.rules.said import not_sparse, without_effect_here
from pipeline.params.schema import ActivationsParams, FitParams, section_from_dict
from pipeline.training import recipe


class Rows(NamedTuple):
    """What is trained on.

    Attributes:
        n: number of rows.
        tokens_per_row: 1, or the length of a context.
        contexts: whether a row is a context.
        source: activations.source.
    """

    n: int
    tokens_per_row: int
    contexts: bool
    source: str = STORE


def fit_params(
    config: Mapping[str, Any],
    trainer: Mapping[str, Any],
    initializer: Mapping[str, Any],
    rows: Rows,
    batch_size: int,
    max_norm_factor: float | None,
    stacklevel: int = 5,
) -> FitParams:
    """All parameters.

    Args:
        config: of the dictionary, completed, with its widths.
        trainer, initializer: fields that are given.
        rows: of the activations.
        batch_size: rows in a batch.
        max_norm_factor: activations.max_norm_factor.
        stacklevel: of the warnings: how far above `warnings.warn` the caller is that they are for.

    Raises:
        ParamsError: unknown, mistyped or contradictory fields, all at once; or nothing is left to train on.

    Warns (UserWarning) as the train stage does, of the fields that are given.
    """
    complete = recipe.trainer_fields(trainer, config)
    params = section_from_dict(
        FitParams,
        {
            "dictionary": config,
            "trainer": complete,
            "initializer": recipe.initializer_fields(initializer, config, complete),
            "activations": ActivationsParams(
                source=rows.source,
                context_size=max(rows.tokens_per_row, 2) if rows.contexts else 128,
                total_tokens=rows.n * rows.tokens_per_row,
                batch_size=batch_size,
                max_norm_factor=max_norm_factor,
                target="activations-2d" if rows.contexts else "activations-1d",
            ),
        },
    )
    if holds_back(params) and rows.n < 2 * batch_size:
        raise ParamsError(
            f"batch_size: {batch_size} leaves nothing to train on of {rows.n} rows, since one batch sets the "
            f"inference threshold of act_fn '{params.dictionary.act_fn}'"
        )
    _warn(params, trainer, initializer, stacklevel)
    return params


def holds_back(params: FitParams) -> bool:
    """Whether rows are kept from training to set inference thresholds."""
    return params.dictionary.is_batch_dependent or bool(params.trainer.steered_l0)


def held_back(rows: Rows, batch_size: int) -> int:
    """Rows kept from training for the inference thresholds: whole batches."""
    n = min(-(-recipe.CALIBRATION_TOKENS // rows.tokens_per_row), rows.n // 10)
    return max(n // batch_size, 1) * batch_size


def _warn(params: FitParams, trainer: Mapping[str, Any], initializer: Mapping[str, Any], stacklevel: int) -> None:
    """What the train stage says of its parameters, of the fields that the caller has given."""
    given = {*(f"trainer.{key}" for key in trainer), *(f"initializer.{key}" for key in initializer)}
    idle = [line for key, line in without_effect_here(params).items() if key in given]
    for line in (not_sparse(params.dictionary, params.trainer), f"no effect: {', '.join(idle)}" if idle else None):
        if line is not None:
            warnings.warn(line, stacklevel=stacklevel)
