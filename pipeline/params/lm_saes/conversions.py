"""Values of the reference as values of ours."""

from __future__ import annotations

from typing import Any

from pipeline.params.choices import MODEL_DTYPES, WEIGHT_DTYPES
from pipeline.params.lm_saes.declared import NoCounterpart

_SHORT = {"fp16": "float16", "fp32": "float32", "fp64": "float64", "bf16": "bfloat16", "float": "float32", "int": "int32"}
_NAMES = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "bool", "float", "int")
DTYPES = (*(f"torch.{name}" for name in _NAMES), *_NAMES, "fp16", "bf16", "fp32", "fp64")  # as a settings file writes them


def dtype_name(value: str) -> str:
    """`float16` of "torch.float16", "float16" and "fp16"."""
    name = value.removeprefix("torch.")
    return _SHORT.get(name, name)


def model_dtype(value: str) -> str:
    """One of the language model, or of what is stored and delivered."""
    return _one_of(value, MODEL_DTYPES, "float32 here")


def weight_dtype(value: str) -> str:
    """One of the weights: those are never less than float32."""
    return _one_of(value, WEIGHT_DTYPES, "weights stay float32; trainer.amp_dtype is what a step computes in")


def amp_dtype(value: str | None) -> str:
    """None: no autocast, which is float32."""
    return "float32" if value is None else _one_of(value, MODEL_DTYPES, "float32 here")


def _one_of(value: str, known: tuple[str, ...], nearest: str) -> str:
    name = dtype_name(value)
    if name not in known:
        raise NoCounterpart(f"none of {', '.join(known)}; {nearest}")
    return name


def backend(value: str) -> str:
    """`auto` is ours: forward hooks on transformers, for every model."""
    if value == "tokenizer_only":
        raise NoCounterpart("a language model is always loaded; huggingface here")
    return "huggingface" if value == "auto" else value


def norm_activation(value: str) -> str:
    """`inference` is what a folded dictionary has."""
    if value == "inference":
        raise NoCounterpart("activations are always normalised in training; dataset-wise here, folded away in the fold stage")
    return value


def number(value: Any) -> float | None:
    """An integer or a number, as a number."""
    return None if value is None else float(value)


def count(value: float | None) -> int | None:
    """A number of things that the reference writes as a number."""
    return None if value is None else int(value)


def switch(value: bool | None) -> bool:
    """Null is false."""
    return bool(value)


def above_zero(value: float | None) -> float | None:
    """A weight of a loss: 0 is none."""
    return value or None


def learning_rate(value: float | dict[str, float]) -> float:
    """One rate."""
    if isinstance(value, dict):
        raise NoCounterpart("rates by group of parameters; nearest: trainer.lr and, of thresholds, trainer.jumprelu_lr_factor")
    return value


def cross_layer_decoders(value: bool) -> str:
    """All zero, or drawn."""
    return "zero" if value else "drawn"
