"""One dictionary of the train stage: the run's, or a member of its sweep, and all that its training depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.activations.interface import Activations
from pipeline.activations.schema import training_rows
from pipeline.contracts.sealing import Origin
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import config_from_dict
from pipeline.dictionaries.store import load_dealt, stored_digest
from pipeline.dictionaries.weights import weights_digest
from pipeline.errors import DataError
from pipeline.norms.exclusion import NormLimits
from pipeline.norms.normalizer import Normalizer
from pipeline.params.schema import Params, TrainerParams
from pipeline.processes import ONE_PROCESS, Reductions
from pipeline.training.fingerprint import describe_run
from pipeline.training.schedules import with_rate
from pipeline.training.source import StoreSource

INITIALIZE = "run `dvc repro -s -f initialize`"


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """A dictionary to be trained.

    Attributes:
        name: of the member of the sweep; "": there is none.
        params: of it alone.
        trainer: its parameters, the learning rate worked out.
        dictionary: with its initial weights.
        normalizer: of its norms.
        source: of its batches.
        about: all that changes its weights; the same, whatever it is trained beside.
    """

    name: str
    params: Params
    trainer: TrainerParams
    dictionary: Dictionary
    normalizer: Normalizer
    source: StoreSource
    about: Mapping[str, Any]

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return next(self.dictionary.parameters()).device

    @property
    def norms(self) -> dict[str, Any]:
        """{hook point: norm} as plain values."""
        return {hook: norm.to_dict() for hook, norm in self.normalizer.norms.items()}


def open_member(
    name: str,
    params: Params,
    initial: Path,
    store: Activations,
    norms: Mapping[str, Any],
    inputs: Mapping[str, str | None],
    device: torch.device,
    feature_group: Reductions = ONE_PROCESS,
) -> Member:
    """Read a member's initial dictionary and see that it is of these parameters and inputs.

    Args:
        name: of the member.
        params: of it alone.
        initial: directory of its initial dictionary.
        store: open activations.
        norms: of their hook points.
        inputs: {what: digest} that the initial dictionary should have been made from.
        device: of the training.
        feature_group: over the processes that its features are dealt to.

    Raises:
        ParamsError: they cannot be.
        DataError: it is not there, was made for other parameters or from other inputs, or does not fit the activations.
    """
    dictionary = load_dealt(initial, feature_group, device=device)
    check_matches(dictionary, params, initial)
    Origin.of(dictionary.config.provenance).check(initial, "initialize", inputs)
    normalizer = Normalizer(dictionary.config, norms)
    source = make_source(params, dictionary, normalizer.excluded, store, device)
    fine_tuning = params.initializer.from_dictionary is not None
    trainer = with_rate(params.trainer, dictionary.config, params.total_steps, fine_tuning=fine_tuning)
    about = describe_run(
        dictionary.config,
        weights_digest(dictionary) if feature_group.size == 1 else stored_digest(initial, feature_group),
        normalizer,
        source,
        trainer.to_dict(),
        total_steps=params.total_steps,
        determinism=params.determinism,
        device=device,
    )
    return Member(name, params, trainer, dictionary, normalizer, source, about)


def check_matches(dictionary: Dictionary, params: Params, place: Path) -> None:
    """Refuse an initial dictionary that was made for other parameters (a stage run alone can meet one).

    Raises:
        DataError: names the fields.
    """
    config = dictionary.config
    wanted = config_from_dict(params.dictionary.of_widths(config.d_in, config.d_out)).to_dict()
    found = {key: value for key, value in config.to_dict().items() if key not in ("norms", "provenance")}
    different = [f"{key} is {value!r}, wanted {wanted.get(key)!r}" for key, value in found.items() if wanted.get(key) != value]
    if different:
        reason = "; ".join(different)
        raise DataError(f"{place}: the initial dictionary was made for other parameters ({reason}); {INITIALIZE}")


def make_source(
    params: Params, dictionary: Dictionary, limits: NormLimits, store: Activations, device: torch.device
) -> StoreSource:
    """The store's training rows as the parameters want them, without the tokens above `limits`.

    Raises:
        DataError: a width does not fit, or there is nothing to train on.
    """
    widths = dict.fromkeys(dictionary.hooks_in, dictionary.config.d_in)
    widths |= dict.fromkeys(dictionary.hooks_out, dictionary.config.d_out)
    for hook, width in widths.items():
        if store.width(hook) != width:
            raise DataError(
                f"{store.path}: activations at {hook} are {store.width(hook)} wide, the initial dictionary wants {width}; "
                f"{INITIALIZE}"
            )
    stated = None if params.activations.dtype is None else getattr(torch, params.activations.dtype)
    return StoreSource(
        store=store,
        hooks_in=dictionary.hooks_in,
        hooks_out=dictionary.hooks_out,
        batch_size=params.activations.batch_size,
        rows=training_rows(store, params.fold.calibration_tokens),
        limits=limits,
        buffer_rows=params.activations.buffer_size,
        seed=params.seed,
        # The CPU decodes in the reader's thread; to a GPU go the stored bytes, which are fewer.
        dtype=stated or (torch.float32 if device.type == "cpu" else None),
        device=device if device.type == "cuda" else None,
    )
