"""The trainer's parameters for the loss of a dictionary in memory, checked as those of a file are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline.dictionaries.base import Dictionary
from pipeline.params.schema import ActivationsParams, FoldParams, InitializerParams, Params, TrainerParams, section_from_dict
from pipeline.params.sections.dictionary import kind_class
from pipeline.training.tensors import stand_ins


def loss_params(dictionary: Dictionary, trainer: Mapping[str, Any]) -> TrainerParams:
    """`trainer`'s fields, completed by the declared defaults.

    Raises:
        ParamsError: unknown or mistyped fields, or what makes no sense for this dictionary, all at once.
    """
    config, section = dictionary.config, kind_class(dictionary.config.kind)
    known = {field.name for field in dataclasses.fields(section)}
    fields = {name: value for name, value in config.to_dict().items() if name in known and not name.startswith("hook_point")}
    if config.folded:
        fields["norm_activation"] = "dataset-wise"
    fields |= {"d_model": config.d_in, "expansion_factor": (config.d_sae + 0.5) / config.d_in}
    given = section_from_dict(TrainerParams, trainer)
    by_target = given.steered_l0 is not None
    first = -2.302585 if dictionary.activation.has_threshold and not by_target else None
    return Params(
        dictionary=section_from_dict(section, fields | stand_ins(section, dictionary.hooks_in, dictionary.hooks_out)),
        trainer=given,
        initializer=InitializerParams(init_log_jumprelu_threshold_value=first, bias_init_method="all_zero"),
        fold=FoldParams(mode="keep"),
        activations=ActivationsParams(
            context_size=dictionary.max_context or 128,
            target="activations-2d" if section.READS_SEQUENCES else "activations-1d",
            batch_size=1,
        ),
    ).trainer
