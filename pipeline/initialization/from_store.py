"""The initialize stage's work: a dictionary for a store's hook points, started from a sample of its training rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pipeline.activations.interface import Activations
from pipeline.activations.schema import training_rows
from pipeline.contracts.sealing import Origin
from pipeline.dictionaries.base import Dictionary
from pipeline.dictionaries.build import config_from_dict, dictionary_class
from pipeline.dictionaries.saving import save_dictionary
from pipeline.dictionaries.weights import weights_digest
from pipeline.errors import DataError
from pipeline.hooks import stacked
from pipeline.initialization.attention import attention_layer
from pipeline.initialization.compose import build_base, check, initialize_
from pipeline.initialization.from_dictionary import check_start, read_start, started
from pipeline.initialization.mlp_responses import mlp_layers
from pipeline.initialization.sample import Sample, make_sample
from pipeline.lm.attention import AttentionWeights
from pipeline.memory import Need, require_memory
from pipeline.norms.hook_norm import HookNorm, read_norms
from pipeline.norms.normalizer import Normalizer
from pipeline.opening import open_for
from pipeline.params.schema import Params

if TYPE_CHECKING:
    from pipeline.lm.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class Places:
    """What the stage reads (manifest of the store, norms) and the dictionary directory that it writes."""

    activations: Path
    norms: Path
    initial: Path


class Initial(NamedTuple):
    """What the stage has made.

    Attributes:
        dictionary: with its first weights.
        found: what was found on the way (see `compose.initialize_`, `from_dictionary.Start`).
        said: in a line, of one that starts from another dictionary; None: it was drawn.
        made_from: digest of that dictionary.
    """

    dictionary: Dictionary
    found: dict[str, float]
    said: str | None = None
    made_from: Mapping[str, str] = {}


def initialize_dictionary(params: Params, places: Places) -> Initial:
    """Make and write the initial dictionary.

    Raises:
        ParamsError: an option makes no sense for this dictionary, a width is not the one stated, or the dictionary to start
            from is of another shape.
        DataError: the store, the norms, the model or the dictionary to start from are missing or do not fit.
    """
    store = open_for(params, places.activations)
    make = _drawn if params.initializer.from_dictionary is None else _started
    measured, origin = read_norms(places.norms)
    origin.check(places.norms, "norm", store.made_from())
    initial = make(params, store, measured)
    norms = {hook: norm.to_dict() for hook, norm in Normalizer(initial.dictionary.config, measured).norms.items()}
    initialization = {**params.initializer.to_dict(), "seed": params.initializer.drawn_by(params.seed), "found": initial.found}
    made = Origin("initialize", {**store.made_from(), "norms": origin.digest or "", **initial.made_from})
    about = {"norms": norms, "model": store.model, "initialization": initialization, **made.to_dict()}
    save_dictionary(initial.dictionary, places.initial, about)
    return initial


def _drawn(params: Params, store: Activations, measured: Mapping[str, HookNorm]) -> Initial:
    unit_rows, seed = params.trainer.decoder_constraint == "unit_norm", params.initializer.drawn_by(params.seed)
    dictionary = build_base(dictionary_config(params, store), params.initializer, seed, unit_rows=unit_rows)
    _require_file_memory(params, dictionary)
    check(dictionary, params.initializer, has_model=True)
    found = initialize_(
        dictionary,
        read_sample(store, dictionary, Normalizer(dictionary.config, measured), *_sample_rows(params, store)),
        params.initializer,
        batch_rows=params.activations.tokens_per_batch,
        seed=seed,
        mlps=_load_mlps(params, dictionary) if params.initializer.initialize_tc_with_mlp else (),
        model_attention=_load_attention(params, dictionary) if params.initializer.initialize_lorsa_with_mhsa else None,
        unit_rows=unit_rows,
        target_l0=params.trainer.steered_l0,
    )
    return Initial(dictionary, found)


def _started(params: Params, store: Activations, measured: Mapping[str, HookNorm]) -> Initial:
    place = params.initializer.from_dictionary
    assert place is not None
    source, config = read_start(place), config_from_dict(dictionary_config(params, store))
    check_start(source, config, place)
    empty = dictionary_class(config.kind)(config)
    _require_file_memory(params, empty)
    start = started(
        source,
        config,
        measured,
        read_sample(store, empty, Normalizer(config, measured), *_sample_rows(params, store)),
        place=place,
        batch_rows=params.activations.tokens_per_batch,
        unit_rows=params.trainer.decoder_constraint == "unit_norm",
    )
    return Initial(start.dictionary, start.found, start.words, {"dictionary": weights_digest(source)})


def _sample_rows(params: Params, store: Activations) -> tuple[tuple[int, int], int]:
    """The training rows, and how many tokens of them are read."""
    return training_rows(store, params.fold.calibration_tokens), params.initializer.tokens


def _require_file_memory(params: Params, dictionary: Dictionary) -> None:
    content = 2 * sum(parameter.nbytes for parameter in dictionary.parameters())  # as bytes, and as a file of them
    width = {"dictionary.expansion_factor": params.dictionary.expansion_factor}
    require_memory(Need("the file of the weights", content, width))


def dictionary_config(params: Params, store: Activations) -> dict[str, Any]:
    """The configuration of `build_dictionary`, widths read from the store.

    Raises:
        ParamsError: dictionary.d_model is not the width of the hook point, a kind of one width has hook points of several, or
            there are too few features for what is asked.
    """
    widths = {hook: store.width(hook) for hook in params.dictionary_hook_points}
    hooks_in, hooks_out = params.dictionary.hooks_in, params.dictionary.hooks_out
    return params.with_widths(widths).dictionary.of_widths(widths[hooks_in[0]], widths[hooks_out[0]])


def read_sample(
    store: Activations, dictionary: Dictionary, normalizer: Normalizer, rows: tuple[int, int], wanted: int
) -> Sample:
    """The first tokens of the training rows (rows are shuffled, so they are a fair sample).

    Args:
        store: open activations.
        dictionary: whose hook points are read.
        normalizer: of its norms.
        rows: (first, last + 1) of the training rows.
        wanted: initializer.tokens.

    Raises:
        DataError: an activation is not finite, or none is kept.
    """
    flat = store.target == "activations-1d"
    start, stop = rows
    stop = min(stop, start + -(-wanted // (1 if flat else store.context_size)))
    dtype = next(dictionary.parameters()).dtype
    tokens = (stop - start) * (1 if flat else store.context_size)
    n_hooks = [len(hooks) for hooks in (dictionary.hooks_in, dictionary.hooks_out)]
    width = n_hooks[0] * dictionary.config.d_in
    if dictionary.hooks_out != dictionary.hooks_in:
        width += n_hooks[1] * dictionary.config.d_out
    n_bytes = 2 * tokens * width * dtype.itemsize  # raw and normalised
    require_memory(Need("the sample", n_bytes, {"initializer.tokens": wanted}))

    raw = store.read_together((*dictionary.hooks_in, *dictionary.hooks_out), start, stop)
    found = {}
    for hook in list(raw):
        found[hook] = raw.pop(hook).to(dtype)
        if not bool(torch.isfinite(found[hook]).all()):
            raise DataError(f"{store.path}: activations at {hook} are not all finite; run `dvc repro -s -f generate`")
    inputs = stacked(found, dictionary.hooks_in)
    labels = inputs if dictionary.hooks_out == dictionary.hooks_in else stacked(found, dictionary.hooks_out)
    mask = None if flat else store.read("mask", start, stop)
    device = next(dictionary.parameters()).device
    inputs, labels = inputs.to(device), inputs.to(device) if labels is inputs else labels.to(device)
    return make_sample(dictionary, normalizer, inputs, labels, mask if mask is None else mask.to(device))


def _load_mlps(params: Params, dictionary: Dictionary) -> list[Callable[[Tensor], Tensor]]:
    layers = mlp_layers(dictionary, params.initializer.model_layer)
    model = _load_model(params, layers)
    return [model.layer_mlp(layer, hook) for layer, hook in zip(layers, dictionary.hooks_in, strict=True)]


def _load_attention(params: Params, dictionary: Dictionary) -> AttentionWeights:
    layer = attention_layer(dictionary, params.initializer.model_layer)
    return _load_model(params, [layer]).layer_attention(layer, dictionary.hooks_in[0], dictionary.hooks_out[0])


def _load_model(params: Params, layers: Sequence[int]) -> LanguageModel:
    """The model with these layers, for its weights: in float32 on the CPU, whatever it runs in."""
    from pipeline.lm.loading import load_language_model

    return load_language_model(
        params.model.model_name,
        revision=params.model.revision,
        backend=params.model.backend,
        device="cpu",
        hook_points=[f"blocks.{layer}.hook_resid_post" for layer in layers],
        tokenizer_name=params.model.tokenizer_name,
    )
