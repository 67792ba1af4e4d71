"""Load a language model, its tokenizer, or only what its configuration says.

    model = load_language_model("demo")
    model_widths("EleutherAI/pythia-160m").d_model      # reads config.json alone, or the header of a GGUF file

Every import of transformers is inside the functions that need it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.arguments import checked, names
from pipeline.errors import DataError, unknown_name
from pipeline.lm.families import is_known
from pipeline.lm.source import ModelSource, resolve_model
from pipeline.params.choices import BACKENDS, attention_fault

if TYPE_CHECKING:
    import torch

    from pipeline.lm.attention import AttentionWeights
    from pipeline.lm.language_model import LanguageModel
    from pipeline.params.schema import ModelParams


def _name(value: object) -> str:
    """What is wanted in the place of a model's name."""
    right = isinstance(value, (str, os.PathLike)) and str(value) != ""
    return "" if right else "'demo', a directory, a GGUF file or a hub id"


@checked(name_or_path=_name, hook_points=names)
def load_language_model(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    backend: str = "huggingface",
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    attention: str = "auto",
    hook_points: Sequence[str] | None = None,
    tokenizer_name: str | None = None,
    device_map: str | None = None,
    quantization: str | None = None,
) -> LanguageModel:
    """Load a causal language model for reading and splicing activations.

    Args:
        name_or_path: `demo`, a local directory written by save_pretrained, a GGUF file, or a hub id.
        revision: branch, tag or commit of a hub model.
        backend: "huggingface" or "transformer_lens"; they agree to 2e-6 relative in float32.
        dtype: "float32", "bfloat16" or "float16" (or the torch dtype); None: float32.
        device: None: cuda if there is one, else cpu.
        attention: how transformers computes attention: "auto" (sdpa where the family has it), "eager", "sdpa" or
            "flash_attention_2"; they agree to rounding.
        hook_points: those that will be read; blocks above the deepest of them and the unembedding are not loaded, so that
            the model has no logits. None: the whole model.
        tokenizer_name: a directory, hub id or GGUF file whose tokenizer is the model's; None: the one beside the model.
        device_map: "auto": blocks on all GPUs, then in memory, then on the disk (package accelerate); activations come to
            `device` of the model all the same. None: on one device.
        quantization: "8bit" or "4bit" linear layers (package bitsandbytes); None: as they are.

    Raises:
        DataError: no such model, back end, dtype, device, attention or hook point, an unsupported architecture, a device map
            or quantisation that cannot be had here, or damaged or missing weights.
    """
    if backend not in BACKENDS:
        raise DataError(unknown_name("back end", backend, BACKENDS))
    fault = attention_fault(backend, attention)
    if fault is not None:
        raise DataError(f"model.attention: {fault}")
    source = resolve_model(name_or_path, revision, tokenizer_name, any_family=backend == "transformer_lens")
    from pipeline.lm.placement import check_placement
    from pipeline.lm.weights import load_weights

    check_placement(source, backend, device, device_map, quantization)
    if not is_known(source.model_type):
        return _load_bridged(source, dtype, device, attention)
    n_blocks = None if hook_points is None else source.needed_blocks(hook_points)
    whole = n_blocks is None

    if backend == "transformer_lens":
        from pipeline.lm.transformer_lens import TransformerLensModel

        return TransformerLensModel(source, load_weights(source, dtype, device, attention, n_blocks), whole)
    from pipeline.lm.huggingface import HuggingFaceModel

    loaded = load_weights(source, dtype, device, attention, n_blocks, device_map, quantization)
    return HuggingFaceModel(source, loaded, whole)


def _load_bridged(source: ModelSource, dtype: Any, device: Any, attention: str) -> LanguageModel:
    """A model of a family that only TransformerLens knows, whole."""
    from pipeline.lm.bridged import BridgedModel, BridgedSource
    from pipeline.lm.weights import load_weights

    assert isinstance(source, BridgedSource)
    return BridgedModel(source, load_weights(source, dtype, device, attention))


def load_stated(model: ModelParams, hook_points: Sequence[str] | None = None) -> LanguageModel:
    """:func:`load_language_model` of what a parameter file states.

    Args:
        model: the section, or that of a further model (`Params.language_model`).
        hook_points: those that will be read, if nothing else is wanted of the model.
    """
    return load_language_model(
        model.model_name,
        revision=model.revision,
        backend=model.backend,
        dtype=model.dtype,
        device=model.device,
        attention=model.attention,
        hook_points=hook_points,
        tokenizer_name=model.tokenizer_name,
        device_map=model.device_map,
        quantization=model.quantization,
    )


def stated_widths(model: ModelParams) -> ModelSource:
    """:func:`model_widths` of what a parameter file states."""
    return model_widths(model.model_name, model.revision, model.tokenizer_name, model.backend)


def load_tokenizer(name_or_path: str | Path, revision: str | None = None, tokenizer_name: str | None = None) -> Any:
    """The tokenizer of a model (a transformers tokenizer).

    Raises:
        DataError: no such model, or its tokenizer is missing or damaged.
    """
    return resolve_model(name_or_path, revision, tokenizer_name, any_family=True).load_tokenizer()


def model_widths(
    name_or_path: str | Path,
    revision: str | None = None,
    tokenizer_name: str | None = None,
    backend: str = "huggingface",
) -> ModelSource:
    """What a model's configuration says, without weights and without importing torch.

    Args:
        name_or_path, revision: of the model.
        tokenizer_name: where its tokenizer is; None: beside it.
        backend: that it is to be run by; transformer_lens may have further families.

    Returns:
        an object with .d_model, .n_layers, .vocab_size, .max_context, .model_type, .revision, .hook_points(),
        .hook_width(hook_point) (a DataError if it does not exist) and .digest().

    Raises:
        DataError: no such model, or its architecture is not supported.
    """
    return resolve_model(name_or_path, revision, tokenizer_name, any_family=backend == "transformer_lens")


def load_attention_form(
    name_or_path: str | Path, revision: str | None, layer: int, hook_point_out: str | None = None
) -> AttentionWeights:
    """The attention of one layer without its weights, by the configuration alone: tensors have shapes and no values.

    Args:
        name_or_path, revision: of the model.
        layer: block, from 0.
        hook_point_out: what is written; None: `blocks.{layer}.hook_attn_out`.

    Raises:
        DataError: no such model or layer, or an attention of a form that cannot be read.
    """
    source = resolve_model(name_or_path, revision, any_family=True)
    if not is_known(source.model_type):
        from pipeline.lm.bridged import undeclared

        raise undeclared(source, "its attention")
    from pipeline.lm.huggingface import HuggingFaceModel
    from pipeline.lm.weights import empty_model

    model = HuggingFaceModel(source, empty_model(source))
    return model.layer_attention(layer, f"blocks.{layer}.ln1.hook_out", hook_point_out)
