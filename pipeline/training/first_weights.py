"""The dictionary that a training in Python starts with: drawn, or another dictionary's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import dictionary_class
from pipeline.initialization.compose import build_base, check, initialize_
from pipeline.initialization.from_dictionary import check_start, full_precision, read_start, started
from pipeline.initialization.sample import Sample
from pipeline.norms.normalizer import Normalizer
from pipeline.params.schema import FitParams

FROM, IN_MEMORY = "from_dictionary", "a dictionary in memory"


def read_stated(initializer: Mapping[str, Any]) -> tuple[dict[str, Any], Dictionary | None]:
    """The fields of initializer as a parameter file has them, and the dictionary to start from, read where a path is given.

    Raises:
        DataError: nothing there that is a dictionary.
    """
    stated, given = dict(initializer), initializer.get(FROM)
    if isinstance(given, Dictionary):
        return {**stated, FROM: IN_MEMORY}, full_precision(given)
    if isinstance(given, Path):
        stated[FROM] = str(given)
    return stated, read_start(given) if isinstance(given, (str, Path)) else None


def untrained(config: Mapping[str, Any], params: FitParams, start: Dictionary | None, seed: int) -> Dictionary:
    """A dictionary of this configuration; :func:`first_weights` gives it its weights.

    Raises:
        ParamsError: an option makes no sense for it, or the dictionary to start from is of another shape.
    """
    if start is None:
        made = build_base(config, params.initializer, seed, unit_rows=params.trainer.decoder_constraint == "unit_norm")
        check(made, params.initializer, has_model=False)
        return made
    check_start(start, params.dictionary, str(params.initializer.from_dictionary))
    return dictionary_class(params.dictionary.kind)(params.dictionary)


def first_weights(
    made: Dictionary, sample: Sample, normalizer: Normalizer, params: FitParams, start: Dictionary | None, seed: int
) -> Dictionary:
    """The dictionary with its first weights.

    Args:
        made: of :func:`untrained`, on its device.
        sample: of the training rows.
        normalizer: of the run's norms.
        params: all parameters.
        start: the dictionary to start from; None: weights are drawn and set by the strategies of initializer.
        seed: of the draw.
    """
    batch_rows, unit_rows = params.activations.tokens_per_batch, params.trainer.decoder_constraint == "unit_norm"
    if start is not None:
        source, place = start.rebuilt(start.state_dict()).to(sample.x.device), str(params.initializer.from_dictionary)
        found = started(source, made.config, normalizer.norms, sample, place=place, batch_rows=batch_rows, unit_rows=unit_rows)
        return found.dictionary
    initialize_(
        made,
        sample,
        params.initializer,
        batch_rows=batch_rows,
        seed=seed,
        unit_rows=unit_rows,
        target_l0=params.trainer.steered_l0,
    )
    return made
